"""Scoring agrees with one document at a time through transformers' own loss; the table sums what it shows."""

import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data_mixers.errors import DataError
from examples.quickstart.score import SetScore, pooled, score_hf
from examples.quickstart.table import before_after_markdown, before_after_rows, before_after_table

DOCUMENTS = {
    "zh/made_up/law": ["第一条 为了保护", "第二条 本法所称的发明创造，是指发明、实用新型和外观设计。" * 3],
    "en/made_up/computing": ["a file", "The kernel maps pages. " * 9, "x", "to be or not to be"],
}


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("text")
    paths = []
    for name, texts in DOCUMENTS.items():
        path = root / f"{name}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
        paths.append(path)
    return paths


def _one_by_one(hf_dir: Path, texts: list[str], seq_length: int) -> tuple[float, int]:
    """Each window alone through transformers' own labels; a byte is a token of this tokenizer."""
    model = LlamaForCausalLM.from_pretrained(hf_dir).eval()
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters = dict(zip(range(256), _byte_letters(), strict=True))
    total, tokens = 0.0, 0
    for text in texts:
        ids = [alphabet[letters[byte]] for byte in text.encode()]
        for start in range(0, len(ids) - 1, seq_length):
            window = torch.tensor([ids[start : start + seq_length + 1]])
            with torch.no_grad():
                total += model(window, labels=window).loss.item() * (window.shape[1] - 1)
            tokens += window.shape[1] - 1
    return total, tokens


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte: printable Latin-1 stands for itself, the rest follow from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@pytest.mark.parametrize("seq_length", [512, 40])
def test_batched_scores_equal_one_document_at_a_time(hf_dir: Path, files: list[Path], seq_length: int) -> None:
    scores = score_hf(hf_dir, files, seq_length=seq_length, dtype=torch.float32)
    assert [score.name for score in scores] == list(DOCUMENTS)
    for score, texts in zip(scores, DOCUMENTS.values(), strict=True):
        nll, tokens = _one_by_one(hf_dir, texts, seq_length)
        assert score.tokens == tokens == sum(len(text.encode()) - 1 for text in texts)
        assert score.text_bytes == sum(len(text.encode()) for text in texts)
        assert score.nll_sum == pytest.approx(nll, rel=1e-5)  # fp32 sums in another order


def _score(name: str, nll: float, tokens: int = 100, size: int = 200) -> SetScore:
    return SetScore(name, nll, tokens, size)


def test_perplexity_and_bits_per_byte_by_hand() -> None:
    score = _score("zh/a/b", 100 * math.log(8))
    assert score.perplexity == pytest.approx(8)
    assert score.bits_per_byte == pytest.approx(3 * 100 / 200)
    assert pooled("both", [score, _score("en/a/b", 50 * math.log(8), 50, 100)]).perplexity == pytest.approx(8)


HELD_OUT = {"zh/a/law": "documents", "zh/b/law": "source", "en/a/general": "retention"}
BEFORE = [_score("zh/a/law", 300), _score("zh/b/law", 200), _score("en/a/general", 250)]
AFTER = [_score("zh/a/law", 200), _score("zh/b/law", 160), _score("en/a/general", 256)]


def test_rows_are_grouped_and_summed() -> None:
    rows = before_after_rows(BEFORE, {"after": AFTER}, HELD_OUT)
    assert [(row.group, row.name) for row in rows] == [
        ("Chinese", "zh/a/law"),
        ("Chinese", "zh/b/law †"),
        ("Chinese", "all Chinese"),
        ("not trained on (retention)", "en/a/general"),
    ]
    assert rows[2].before.perplexity == pytest.approx(math.exp(500 / 200))
    assert rows[2].after[0].perplexity == pytest.approx(math.exp(360 / 200))


def test_the_printed_table_shows_both_figures() -> None:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(before_after_table(BEFORE, {"after": AFTER, "Chinese only": AFTER}, HELD_OUT))
    text = console.export_text()
    assert f"{math.exp(3):.2f}" in text
    assert f"{math.exp(2):.2f}" in text
    assert f"{300 / math.log(2) / 200:.3f}" in text
    assert f"{math.exp(2):.2f} |" in before_after_markdown(BEFORE, {"after": AFTER}, HELD_OUT)


def test_scores_of_other_text_are_refused() -> None:
    with pytest.raises(DataError, match="after: zh/b/law was not scored on the same text"):
        before_after_rows(BEFORE, {"after": [AFTER[0], _score("zh/b/law", 1, 99), AFTER[2]]}, HELD_OUT)
