"""Real text, a tokenizer of it and a small starting model for the studies of examples/surrogate/small.

packages ─> text ─ BPE of 4,096 ─> token files: web (zh, en, with topics), synthetic ─ start.yaml ─> starting model
    its PPL ─ score-ppl, sort ─> synthetic text in five buckets of difficulty
"""

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from data_mixers.atomic import write_atomic
from data_mixers.manifest import read_manifest
from examples.quickstart import assets, corpora
from examples.quickstart.progress import step
from examples.quickstart.steps import syne
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.synthesis.verifiable.topic import KINDS

VOCABULARY = 4096  # ours: a larger one would be most of so small a model
HOLDOUT = 24  # documents of a topic
MADE_PER_KIND = 150  # problems of a kind and language that are right by construction
BUCKETS = 5
EOS = "<|endoftext|>"
WIDTHS = {"small": 64, "middle": 96, "large": 160}
"""Of the three models of the scaling study; the others use "middle"."""
SETS = {
    "web": (("zh", "web", "train/zh/*/*.jsonl"), ("en", "web", "train/en/*/*.jsonl"), ("en", "code", "train/code/*/*")),
    "pairs": (("synthetic", "human", "train/synthetic/[cs]*/*.jsonl"),),
}
"""Folder of token files -> (language, source, files of the text)."""


def prepare(out: Path, *, starts: Sequence[str] = ("middle",)) -> None:
    """Everything the small studies read, below `out`; what is there is not made again.

    starts: which of WIDTHS a starting model is trained of.
    """
    assets.fetch(out / "assets")
    assets.write_licences(out / "assets", out)
    if not (out / "text" / corpora.REPORT).is_file():
        corpora.build(out / "assets", out)
    tokenizer = out / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        with step("a tokenizer of this text"):
            train_tokenizer(sorted((out / "text/train").glob("*/*/*.jsonl")), tokenizer)
    for folder, calls in SETS.items():
        for language, source, glob in calls:
            if (language, source) not in _written(out / "data" / folder):
                _tokens(out, folder, language, source, str(out / "text" / glob), holdout=HOLDOUT)
    if not (out / "data/made/manifest.json").is_file():
        write_made(out / "text/made.jsonl")
        _tokens(out, "made", "synthetic", "made", str(out / "text/made.jsonl"), holdout=0)
    for name, width in WIDTHS.items():
        write_model_config(out / "models" / name / "config.json", width)
    for name in starts:
        if not (out / "start" / name / "checkpoints/iter_0001000").is_dir():
            syne("train", "--config", Path(__file__).parent / "small/start.yaml", "--nproc", 1,
                 f"run.name=start-{name}", f"run.dir={out / 'start' / name}",
                 f"model.hf_config={out / 'models' / name}")  # fmt: skip
    for folder in ("pairs", "made"):
        if not (out / "data" / f"{folder}_sorted/manifest.json").is_file():
            data = out / "data" / folder
            syne("data", "score-ppl", "--data", data, "--checkpoint", out / "start/middle", "--seq-length", 256,
                 "--micro-batch-size", 16)  # fmt: skip
            syne("data", "sort", "--data", data, "--out", out / "data" / f"{folder}_sorted", "--buckets", BUCKETS)


def train_tokenizer(files: list[Path], out: Path) -> None:
    """A byte-level BPE with single digits, as an HF folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    texts = (json.loads(line)["text"] for file in files for line in file.read_text("utf-8").splitlines())
    tokenizer.train_from_iterator(texts, trainer)
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)  # type: ignore[no-untyped-call]
    whole.save_pretrained(temporary)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)


def write_made(file: Path) -> None:
    """Problems of every kind in both languages, each kind a topic (the recipe's disciplines)."""
    from tools.synthesis.verifiable.stream import items

    lines = []
    for kind, language in itertools.product(KINDS, ("en", "zh")):
        problem, solution = ("问题：", "解答：") if language == "zh" else ("Problem: ", "Solution: ")
        for pair in itertools.islice(items(kind, language, seed=0), MADE_PER_KIND):
            text = f"{problem}{pair.question}\n{solution}{pair.answer}"
            row = {"text": text, "id": pair.id, "topic": kind, "language": language}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomic(file, "".join(lines).encode())


def write_model_config(file: Path, width: int) -> None:
    """A Llama of four layers and this hidden size."""
    from megatron_synE.model.llama import LlamaArchitecture, hf_config_of

    architecture = LlamaArchitecture(
        num_layers=4, hidden_size=width, ffn_hidden_size=width * 11 // 4 // 16 * 16, num_attention_heads=4,
        num_query_groups=2, kv_channels=width // 4, vocab_size=VOCABULARY, max_position_embeddings=2048,
        rotary_base=10000.0, layernorm_epsilon=1e-5, tied=True,
    )  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, (json.dumps(hf_config_of(architecture), indent=1) + "\n").encode())


def _written(folder: Path) -> set[tuple[str, str]]:
    """(language, source) of the token files there."""
    if not (folder / "manifest.json").is_file():
        return set()
    return {(source.language, source.source) for source in read_manifest(folder).sources}


def _tokens(out: Path, folder: str, language: str, source: str, inputs: str, *, holdout: int) -> None:
    preprocess(
        PreprocessOptions(
            inputs=(inputs,), tokenizer=out / "tokenizer", out=out / "data" / folder, language=language,
            source=source, topic_key="topic", holdout=holdout,
        )
    )  # fmt: skip
