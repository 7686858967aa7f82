"""generate against real servers: a real model, faults, kills. Nothing lost, nothing doubled."""

import json
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_mixers.errors import ConfigError, DataError
from tests import killed
from tests.openai_server import ROOT, served
from tests.rows import read, write
from tools.data.readers import find_inputs
from tools.synthesis.check import check
from tools.synthesis.generate import generate
from tools.synthesis.options import PROMPTS, CheckOptions, GenerateOptions
from tools.synthesis.prompts import read_prompts

HERE = Path(__file__).parent


def write_seeds(path: Path, texts: list[str]) -> Path:
    rows = [
        {"text": text, "seed_id": f"page {i}", "seed_hash": f"{i:032x}", "discipline": "physics", "language": "en"}
        for i, text in enumerate(texts)
    ]
    return write(path, rows)


def options(seeds: Path, out: Path, *urls: str, **changes: Any) -> GenerateOptions:
    return GenerateOptions(seeds=(str(seeds),), out=out, model="m", endpoints=urls, **changes)


FAULTS = ("429", "500", "503", "slow", "cut", "broken", "empty", "long", "long_endless")


def test_every_fault_ends_in_one_answer_or_one_reason_and_few_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.synthesis.asking.FIRST_WAIT_SECONDS", 0.05)
    texts = [f"FAULT {fault} {i}" for fault in FAULTS for i in range(3)]
    texts += [f"FAULT always {fault} {i}" for fault in ("500", "400", "empty") for i in range(2)]
    texts += [f"plain {i}" for i in range(100)]
    seeds = write_seeds(tmp_path / "seeds.jsonl", texts)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        report = generate(options(seeds, tmp_path / "out", url, timeout_seconds=3.0, concurrency=16))
    pairs, failed = (read(tmp_path / "out" / f"{name}.jsonl.zst") for name in ("pairs", "failed"))
    by_text = {f"{i:032x}": text for i, text in enumerate(texts)}
    assert Counter(row["seed_hash"] for row in pairs + failed) == Counter(list(by_text))
    refused = {by_text[row["seed_hash"]]: row["failed"] for row in failed}
    assert set(refused) == {t for t in texts if "long" in t or "always" in t}
    assert refused["FAULT long 0"] == "answer over 65536 bytes"
    assert refused["FAULT always 400 0"].startswith("status 400")
    assert refused["FAULT always 500 1"] == "6 attempts: status 500"
    assert report["asked"] == len(texts) == report["pairs"] + len(failed)
    asked = Counter(json.loads(line)[0] for line in (tmp_path / "log").read_text().splitlines())
    # Transient faults: 2 failures and an answer; never an answer: 6 attempts, or a few more until another is answered.
    assert all(number == 3 for text, number in asked.items() if "always" not in text and "long" not in text
               and text.startswith("FAULT"))  # fmt: skip
    assert all(number == 1 for text, number in asked.items() if "long" in text or "always 400" in text)
    assert sum(asked.values()) <= len(texts) + 2 * 21 + 4 * 8
    assert pairs[0]["answer"] == "1 + 1 = 2\n2" and pairs[0]["usage"] == {"prompt_tokens": 10, "completion_tokens": 7}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    again = generate(options(seeds, tmp_path / "out", "http://127.0.0.1:1/v1"))  # nothing is asked: no server needed
    assert again["pairs"] == report["pairs"] and again["last_call"]["requests"] == 0


def test_a_dead_server_ends_the_call_and_the_same_call_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", [f"plain {i}" for i in range(40)])
    with pytest.raises(DataError, match=r"run the same command again"):
        generate(options(seeds, tmp_path / "out", "http://127.0.0.1:1/v1", give_up_seconds=1.0))
    assert "no answer (http://127.0.0.1:1/v1: " in caplog.text  # at once, not at the end
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        # One of the two endpoints is dead: the other answers everything.
        report = generate(options(seeds, tmp_path / "out", "http://127.0.0.1:1/v1", url, concurrency=4))
        assert report["pairs"] == 40
        more = generate(options(seeds, tmp_path / "out", url, samples=2))
        assert more["pairs"] == 80 and more["last_call"]["requests"] == 40
        with pytest.raises(ConfigError, match="another temperature"):
            generate(options(seeds, tmp_path / "out", url, temperature=0.1))


@pytest.mark.parametrize(
    ("status", "cure"), [(402, "no credit left"), (401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY")]
)
def test_a_status_that_every_question_would_get_ends_the_call_and_leaves_the_question(
    tmp_path: Path, status: int, cure: str
) -> None:
    plain = [f"plain {i}" for i in range(10)]
    seeds = write_seeds(tmp_path / "seeds.jsonl", [*plain, f"FAULT always {status} 1", f"FAULT always {status} 2"])
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        with pytest.raises(ConfigError, match=rf"answers {status} .*{cure}"):
            generate(options(seeds, tmp_path / "out", url, concurrency=1))
        assert num_lines(tmp_path / "out") == 10
        write_seeds(seeds, [*plain, "the account", "is filled"])
        report = generate(options(seeds, tmp_path / "out", url))
    assert (report["pairs"], report["failed"], report["last_call"]["requests"]) == (12, {}, 2)


@pytest.mark.parametrize("part", ['"seed":', '"role":"system"', '"max_tokens":1024'])
def test_a_request_that_is_refused_whatever_it_asks_ends_the_call_and_burns_no_seed(tmp_path: Path, part: str) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", [f"plain {i}" for i in range(50)])
    refusing = served(HERE / "faulty_model_server.py", tmp_path / "log", SYNE_TEST_REFUSED=part)
    said = r"refuses every question.*status 422.*not permitted"
    with refusing as url, pytest.raises(ConfigError, match=said):
        generate(options(seeds, tmp_path / "out", url, concurrency=4))
    assert num_lines(tmp_path / "out") == 0
    assert len((tmp_path / "log").read_text().splitlines()) <= 2 * 4  # those at once, and a plain one each
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        assert generate(options(seeds, tmp_path / "out", url))["pairs"] == 50


def test_what_has_failed_is_asked_again_on_request_alone(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", [*(f"plain {i}" for i in range(5)), "FAULT always 400 1"])
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        first = generate(options(seeds, tmp_path / "out", url))
        assert (first["pairs"], first["failed"]) == (5, {"status 400": 1})
        again = generate(options(seeds, tmp_path / "out", url, retry_failed=True))
        assert (again["pairs"], again["failed"], again["not_asked_for"]) == (5, {"status 400": 1}, 1)
        write_seeds(seeds, [*(f"plain {i}" for i in range(5)), "now it can"])
        assert generate(options(seeds, tmp_path / "out", url))["last_call"]["requests"] == 0
        again = generate(options(seeds, tmp_path / "out", url, retry_failed=True))
        assert (again["pairs"], again["failed"], again["last_call"]["requests"]) == (6, {}, 1)
    assert sorted(row["seed_id"] for row in read(tmp_path / "out/pairs.jsonl.zst")) == [f"page {i}" for i in range(6)]
    assert read(tmp_path / "out/failed.jsonl.zst") == []
    lines = [json.loads(line) for path in (tmp_path / "out/parts").iterdir() for line in path.read_text().splitlines()]
    assert len(lines) == 8
    assert again["usage"] == {
        name: sum(line.get("usage", {}).get(name, 0) for line in lines)
        for name in ("prompt_tokens", "completion_tokens")
    }
    assert again["usage"]["completion_tokens"] >= again["accepted_tokens"] > 0


@pytest.mark.parametrize("was_array", [False, True])
def test_what_fails_again_is_kept_with_its_last_reason(tmp_path: Path, was_array: bool) -> None:
    seeds, out = tmp_path / "seeds.jsonl", tmp_path / "out"
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        write_seeds(seeds, ["plain", "FAULT always 400 1"])
        generate(options(seeds, out, url))
        if was_array:
            (part,) = (out / "parts").iterdir()
            part.rename(out / "parts" / "00003-of-00004.other.jsonl")  # a name that sorts behind
        write_seeds(seeds, ["plain", "FAULT always length 1"])
        report = generate(options(seeds, out, url, retry_failed=True))
    assert report["failed"] == {"no text, finish_reason length": 1}
    assert [row["finish_reason"] for row in read(out / "failed.jsonl.zst")] == ["length"]


def test_the_folder_as_an_input_is_its_pairs_alone(tmp_path: Path) -> None:
    """failed.jsonl.zst holds none, and parts/ the same pairs again: each would vote twice on its own question."""
    out = tmp_path / "out"
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["plain", "FAULT always 400 1"])
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        generate(options(seeds, out, url))
    for pattern in (out, tmp_path / "o*", out / "*.zst"):
        assert find_inputs((str(pattern),)) == [out / "pairs.jsonl.zst"]
    (part,) = (out / "parts").iterdir()
    assert find_inputs((str(out / "parts"),)) == [part]  # named itself
    (tmp_path / "corpus" / "parts").mkdir(parents=True)
    documents = write(tmp_path / "corpus" / "parts" / "1.jsonl", [{"text": "a"}])
    assert find_inputs((str(tmp_path / "corpus"),)) == [Path(documents)]


def test_an_answer_that_ended_in_thought_is_kept_as_failed_at_once_with_its_usage(tmp_path: Path) -> None:
    texts = [f"FAULT always {fault} 1" for fault in ("length", "content_filter")]
    seeds = write_seeds(tmp_path / "seeds.jsonl", texts)
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        report = generate(options(seeds, tmp_path / "out", url))
    assert report["failed"] == {"no text, finish_reason length": 1, "no text, finish_reason content_filter": 1}
    assert report["last_call"] | {"seconds": 0} == {"requests": 2, "retried": 0, "seconds": 0}
    failed = {row["finish_reason"]: row for row in read(tmp_path / "out" / "failed.jsonl.zst")}
    assert failed["length"]["failed"].endswith("raise --max-tokens")
    assert all(row["usage"]["completion_tokens"] == 7 for row in failed.values())


def test_an_answer_without_a_count_of_its_tokens_is_an_answer(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["FAULT always uncounted 1"])
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        report = generate(options(seeds, tmp_path / "out", url, give_up_seconds=1.0))
    assert (report["pairs"], report["last_call"]["requests"]) == (1, 1)
    assert report["usage"] == {"prompt_tokens": 10, "completion_tokens": 0}


def test_an_answer_in_parts_is_its_text(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["FAULT always in_parts 1"])
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        report = generate(options(seeds, tmp_path / "out", url, give_up_seconds=1.0))
    assert (report["pairs"], report["last_call"]["requests"]) == (1, 1)
    assert [row["answer"] for row in read(tmp_path / "out" / "pairs.jsonl.zst")] == ["1 + 1 = 2\n2"]


@pytest.mark.parametrize("has_markers", [True, False])
def test_what_a_model_thinks_is_no_part_of_its_answer(tmp_path: Path, has_markers: bool) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["FAULT always thought 1", "FAULT always endless_thought 1"])
    folder = tmp_path / "prompts"
    folder.mkdir()
    content = json.loads((PROMPTS / "en.json").read_text())
    (folder / "en.json").write_text(json.dumps(content if has_markers else content | {"markers": None}))
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        report = generate(options(seeds, tmp_path / "out", url, prompts=folder))
    assert (report["pairs"], report["failed"]) == (1, {"no text, finish_reason length": 1})
    (pair,) = read(tmp_path / "out" / "pairs.jsonl.zst")
    said = "1 + 1 = 2\n2"
    assert pair["answer"] == (said if has_markers else f"[Problem]\nWhat is 1 + 1?\n[Solution]\n{said}")


def test_the_key_of_the_environment_is_sent_and_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["plain"])
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        generate(options(seeds, tmp_path / "out", url))
    assert (tmp_path / "log.keys").read_text() == "Bearer a secret"
    assert not any(b"a secret" in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", [f"plain {i}" for i in range(10)])
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        generate(options(seeds, tmp_path / "out", url))
        (part,) = (tmp_path / "out" / "parts").iterdir()
        part.write_bytes(part.read_bytes()[:-20])
        report = generate(options(seeds, tmp_path / "out", url))
    assert report["last_call"]["requests"] == 1
    assert len({row["id"] for row in read(tmp_path / "out" / "pairs.jsonl.zst")}) == report["pairs"] == 10


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_answer_is_two_sections_or_none(language: str) -> None:
    prompts = read_prompts()[language]
    assert prompts.markers is not None
    first, second = prompts.markers
    assert prompts.split(f"{first}\nQ?\n{second}\nA.") == ("Q?", "A.")
    assert prompts.split(f"Sure!\n**{first}**\nQ?\n\n**{second}:**\nA.") == ("Q?", "A.")
    bold = "**Step 1: Data**\nIt falls.\n**Answer: 5 m/s**"
    for decorated in (
        f"{first}\n**What** is C#\n{second}\n{bold}",
        f"## **{first}**\n**What** is C#\n\n## **{second}**\n{bold}\n***",
        f"**{first}:** **What** is C#\n**\n{second} **\n{bold}\n##",
        f"{first}：**What** is C# **{second}** {bold}",
    ):
        assert prompts.split(decorated) == ("**What** is C#", bold)
    for broken in (
        f"{first} Q", f"{second}\nA\n{first}\nQ", f"{first}{second} A", f"{first} Q {second}", "",
        f"{first} Q {second} A {first} R {second} B",
    ):  # fmt: skip
        assert prompts.split(broken) is None
    for shown in prompts.code.examples:
        assert prompts.split(shown.answer) is not None
    assert prompts.template_hash("physics") != prompts.template_hash("code")
    assert "{user}" in prompts.ask("physics", "{user} text")[-1]["content"]


def run_with_kills(seeds: Path, out: Path, url: str, *, total: int, kills: int, max_tokens: int) -> None:
    """`syne synth generate` as a process, killed each time some more answers lie in its part."""
    command = ["synth", "generate", "--seeds", str(seeds), "--model", "m", "--endpoint", url, "--out", str(out),
               "--concurrency", "4", "--max-tokens", str(max_tokens)]  # fmt: skip
    for kill in range(1, kills + 1):
        killed.behind_answers(total // (kills + 2), *command)
        assert num_lines(out) == kill * (total // (kills + 2))
    subprocess.run([sys.executable, "-m", "tools", *command], cwd=ROOT, check=True)


def num_lines(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (out / "parts").glob("*")) if out.exists() else 0


def check_whole(out: Path, seeds: Path, log: Path) -> None:
    rows = read(seeds)
    found = read(out / "pairs.jsonl.zst") + read(out / "failed.jsonl.zst")
    assert Counter(row["seed_hash"] for row in found) == Counter(row["seed_hash"] for row in rows)
    said = read(log)
    assert len(said) <= len(rows) + 2 * 2 * 4  # only what was open at a kill is asked again
    texts = {(row["seed"], row["text"]) for row in said}
    for row in found:  # what the server's model said, word for word
        text = row["text"] if "failed" in row else bytes.fromhex(row["answer"]).decode()
        assert (row["sampling"]["seed"], text) in texts
        assert row["usage"]["completion_tokens"] > 0


def test_twenty_seeds_of_a_served_model_survive_two_kills(tmp_path: Path, tiny_chat_model: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", [f"A stone falls for {i} seconds." for i in range(20)])
    with served(HERE / "model_server.py", tiny_chat_model, 0, tmp_path / "log", SYNE_TEST_SECTIONS="1") as url:
        run_with_kills(seeds, tmp_path / "out", url, total=20, kills=2, max_tokens=24)
    check_whole(tmp_path / "out", seeds, tmp_path / "log")


def test_a_server_of_its_own_is_started_and_ended(tmp_path: Path, tiny_chat_model: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["A stone falls."])
    server = f"{sys.executable} {HERE / 'model_server.py'} {tiny_chat_model} {{port}} {tmp_path / 'log'}"
    command = f"env PYTHONPATH={ROOT} {server}"
    report = generate(
        GenerateOptions(seeds=(str(seeds),), out=tmp_path / "out", model="m", server_command=command, max_tokens=8)
    )
    assert report["asked"] == 1 and report["failed"] == {"no two sections": 1}
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path / "log") not in listed
    local = GenerateOptions(seeds=(str(seeds),), out=tmp_path / "local", model="m", local=tiny_chat_model, max_tokens=8)
    assert generate(local)["asked"] == 1
    text = [read(tmp_path / name / "failed.jsonl.zst")[0]["text"] for name in ("out", "local")]
    assert text[0] == text[1]  # the same weights and seed, with a server between or not


def test_a_chat_template_without_a_system_message_is_said(tmp_path: Path, tiny_chat_model: Path) -> None:
    folder = shutil.copytree(tiny_chat_model, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('System role not supported') }}")
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["A stone falls."])
    given = GenerateOptions(seeds=(str(seeds),), out=tmp_path / "out", model="m", local=folder, max_tokens=8)
    with pytest.raises(ConfigError, match=r"refuses every question.*System role not supported"):
        generate(given)
    assert num_lines(tmp_path / "out") == 0


@pytest.fixture(scope="module")
def tiny_chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_chat")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: i for i, letter in enumerate([*letters, "<eos>"])}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=4096,
                         eos_token_id=256)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_finished_call_again_leaves_its_files_as_they_are_so_that_check_goes_on(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", [f"plain {i}" for i in range(8)])
    pairs = tmp_path / "out/pairs.jsonl.zst"
    checking = CheckOptions(inputs=(str(pairs),), out=tmp_path / "checked")
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        generate(options(seeds, tmp_path / "out", url))
        before, first = pairs.stat(), check(checking)
        generate(options(seeds, tmp_path / "out", url))
        assert (pairs.stat().st_ino, pairs.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        again = check(checking)
        assert (again.num_read, again.num_kept) == (first.num_read, first.num_kept) and first.num_read == 8
        generate(options(seeds, tmp_path / "out", url, samples=2))
    assert len(read(pairs)) == 16
    with pytest.raises(ConfigError, match="another call"):
        check(checking)
