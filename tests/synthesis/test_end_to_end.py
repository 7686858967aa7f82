"""Pages of science, a real chat model behind llama.cpp's own HTTP server, and `syne synth` between: nothing made up.

The client is killed twice and the server once: every seed still has one answer or one reason.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.runtime.launch import die_with_parent
from tests.rows import read, write
from tests.synthesis.real_packages import chat_model, science_pages
from tools.cli import main
from tools.synthesis.check import check
from tools.synthesis.options import CheckOptions, SeedOptions
from tools.synthesis.seeds import write_seeds

ROOT = Path(__file__).parents[2]
SYNE = (sys.executable, "-m", "tools", "synth")
PROMPTS = ROOT / "examples" / "quickstart_synth" / "prompts_pages"


def make_seeds(folder: Path, **quotas: int) -> Path:
    """So many seeds of each discipline, cut by `seeds` from the pages, in one file."""
    rows: list[dict[str, Any]] = []
    for discipline, quota in quotas.items():
        pages = [page for page in science_pages() if page["discipline"] == discipline]
        path = write(folder / f"{discipline}.pages.jsonl", pages)
        out = folder / f"{discipline}.jsonl"
        language = pages[0]["language"]
        options = SeedOptions(
            inputs=(str(path),), out=out, quota=quota, per_page=5, discipline=discipline, language=language
        )
        assert write_seeds(options)["seeds"] == {language: {discipline: quota}}
        rows += read(out)
    return write(folder / "seeds.jsonl", rows)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def serve(port: int, parallel: int) -> subprocess.Popen[str]:
    """The server, ready to answer."""
    command = [*SYNE, "serve", str(chat_model()), "--port", str(port), "--parallel", str(parallel)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
    assert server.stdout is not None and server.stdout.readline() == f"http://127.0.0.1:{port}/v1\n"
    return server


def lines_of(out: Path) -> list[bytes]:
    """Whole lines of the answers so far."""
    found = [path.read_bytes() for path in sorted((out / "parts").glob("*.jsonl"))]
    return [line for content in found for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def wait_for(client: subprocess.Popen[bytes], out: Path, count: int) -> None:
    while len(lines_of(out)) < count:
        assert client.poll() is None, "the client ended before it was to be interrupted"
        time.sleep(0.01)  # the moment is a number of answers, not a time


def generate_with_interruptions(seeds: Path, out: Path, prompts: Path, *, parallel: int, max_tokens: int) -> float:
    """Seconds it took. The client is killed at a quarter and at half of the answers, the server at three quarters."""
    total, port = len(seeds.read_text().splitlines()), free_port()
    command = [*SYNE, "generate", "--seeds", str(seeds), "--model", "SmolLM2-135M-Instruct", "--out", str(out),
               "--endpoint", f"http://127.0.0.1:{port}/v1", "--concurrency", str(parallel),
               "--prompts", str(prompts), "--temperature", "0.3", "--max-tokens", str(max_tokens)]  # fmt: skip
    server, started, kept = serve(port, parallel), time.monotonic(), set[bytes]()
    try:
        for quarter in (1, 2, 3):
            client = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent)
            wait_for(client, out, quarter * total // 4)
            kept |= set(lines_of(out))
            (client if quarter < 3 else server).send_signal(signal.SIGKILL)
            (client if quarter < 3 else server).wait()
        server = serve(port, parallel)
        assert client.wait() == 0
        assert kept < set(lines_of(out))  # not one answer was lost or asked for again
    finally:
        server.kill()
        server.wait()
    return time.monotonic() - started


def check_answers(seeds: Path, out: Path, *, max_tokens: int) -> dict[str, Any]:
    """Exactly one answer or reason a seed, of the page it was cut from; generate's report."""
    rows = {row["seed_hash"]: row for row in read(seeds)}
    found = [json.loads(line) for line in lines_of(out)]
    assert Counter(row["seed_hash"] for row in found) == Counter(rows.keys())
    for row in found:
        seed = rows[row["seed_hash"]]
        assert all(row[key] == seed[key] for key in ("seed_id", "discipline", "language"))
        if row.get("failed", "no two sections") == "no two sections":  # the model said something
            assert 0 < row["usage"]["completion_tokens"] <= max_tokens
            assert row["finish_reason"] == "stop" or row["usage"]["completion_tokens"] == max_tokens
    report: dict[str, Any] = json.loads((out / "report.json").read_text("utf-8"))
    assert report["asked"] == len(rows) == report["pairs"] + sum(report["failed"].values())
    assert report["not_asked_for"] == 0
    return report


def test_twenty_seeds_of_real_pages_survive_three_kills(tmp_path: Path) -> None:
    content = json.loads((PROMPTS / "en.json").read_text("utf-8"))
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    # One example in place of two: reading the prompt is most of the work.
    (prompts / "en.json").write_text(json.dumps(content | {"examples": content["examples"][1:]}), "utf-8")
    seeds = make_seeds(tmp_path, chemistry=10, computer_science=10)
    generate_with_interruptions(seeds, tmp_path / "qa", prompts, parallel=2, max_tokens=24)
    check_answers(seeds, tmp_path / "qa", max_tokens=24)


@pytest.mark.slow
def test_two_hundred_seeds_of_real_pages_and_what_they_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = make_seeds(tmp_path, chemistry=70, computer_science=100, mathematics=30)
    prompts = tmp_path / "prompts"
    shutil.copytree(PROMPTS, prompts)
    shutil.copy(PROMPTS / "en.json", prompts / "zh.json")  # it writes hardly any Chinese, but it must be asked
    seconds = generate_with_interruptions(seeds, tmp_path / "qa", prompts, parallel=4, max_tokens=96)
    report = check_answers(seeds, tmp_path / "qa", max_tokens=96)
    checked = check(CheckOptions(inputs=(str(tmp_path / "qa/pairs.jsonl.zst"),), out=tmp_path / "checked"))
    assert checked.num_read == report["pairs"] == checked.num_kept + checked.num_dropped > 0
    kept = read(tmp_path / "checked")
    dropped = Counter(row["reason"] for row in read(tmp_path / "checked/dropped"))
    tokens = sum(row["usage"]["completion_tokens"] for row in kept)
    with capsys.disabled():
        print(
            f"\n200 seeds, interrupted three times: {report['pairs']} pairs, failed {report['failed']}; "
            f"{len(kept)} kept, dropped {dict(dropped)}; {tokens} accepted QA tokens in {seconds:.0f} s: "
            f"{3600 * tokens / seconds:.0f} an hour"
        )


@pytest.mark.slow
def test_calibration_on_labelled_pairs_finds_out_a_model_that_is_no_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right, labelled = tmp_path / "right.jsonl", tmp_path / "labelled.jsonl"
    assert main(["synth", "verifiable", "--kind", "arithmetic", "--num", "60", "--out", str(right)]) == 0
    numbers = ["--kind", "number"]
    assert main(["synth", "corrupt", "--input", str(right), "--share", "0.5", *numbers, "--out", str(labelled)]) == 0
    port = free_port()
    server = serve(port, 4)
    try:
        judge = ["--url", f"http://127.0.0.1:{port}/v1", "--model", "SmolLM2-135M-Instruct", "--parallel", "4"]
        asked = ["--input", str(right), "--sample", "4", "--calibration", str(labelled)]
        assert main(["synth", "audit", *asked, *judge, "--out", str(tmp_path / "audit")]) == 3
    finally:
        server.kill()
        server.wait()
    assert "it cannot tell them apart; take another" in capsys.readouterr().err
    verdicts = Counter(row["key"].split()[0] for row in map(json.loads, (tmp_path / "audit/verdicts.jsonl").open("rb")))
    assert verdicts == {"sample": 4, "wrong": 30, "right": 30}  # all were asked; no rate was made of it
    assert not (tmp_path / "audit/audit.json").exists()


def test_a_killed_job_takes_its_own_server_with_it(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from tools.synthesis.own_server import own_server\n"
        "with own_server(sys.argv[1], wait_seconds=60) as url:\n"
        "    print(url, flush=True)\n"
        "    time.sleep(600)\n"
    )
    server = f"{sys.executable} -m tools synth serve {chat_model()} --port {{port}} --threads 1 --context 128"
    job = subprocess.Popen([sys.executable, "-c", script, server], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    port = int(job.stdout.readline().rsplit(":", 1)[1].removesuffix("/v1\n"))
    with socket.create_connection(("127.0.0.1", port)):
        pass
    job.kill()
    job.wait()
    job.stdout.read()  # ends when the server, which has the same standard output, has ended too
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_what_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", "serve", str(tmp_path / "none.gguf")]) == 2
    (tmp_path / "cut.gguf").write_bytes(chat_model().read_bytes()[:100_000])
    assert main(["synth", "serve", str(tmp_path / "cut.gguf"), "--port", "0"]) == 3
    message = capsys.readouterr().err
    assert "there is no such file" in message
    assert "is it a whole GGUF file" in message
