"""The cheap signals of `syne data score-ppl`: of the texts themselves, beside a model's scores."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from data_mixers.errors import ConfigError
from data_mixers.manifest import read_manifest
from megatron_synE.data.tokenizers import load_tokenizer
from tests import tiny
from tests.tools import corpus
from tests.tools.test_score import SOURCES, options, scores_of
from tools.data.score import score_ppl
from tools.data.scores_file import open_scores
from tools.data.signals import signals_of
from tools.data.stats import stats


def test_signals_equal_those_of_the_texts_themselves(tmp_path: Path) -> None:
    from tools.data.preprocess import PreprocessOptions, preprocess

    texts = corpus.documents(60)
    tokenizer = corpus.hf_folder(tmp_path / "tokenizer")
    source = corpus.write_jsonl(tmp_path / "pages.jsonl", texts)
    preprocess(PreprocessOptions(inputs=(str(source),), tokenizer=tokenizer, out=tmp_path / "data"))
    score_ppl(options(tmp_path / "data", None, tokenizer=tokenizer))
    manifest = read_manifest(tmp_path / "data")
    shard = manifest.sources[0].shards[0]
    rows = open_scores(manifest.shard_prefix(shard), shard, "default").read().to_pylist()
    counts = [len(ids) for ids in load_tokenizer(tokenizer).encode_ordinary_batch(texts)]
    wanted = [
        (len(t.encode()) / len(zlib.compress(t.encode(), 6)), len(t) / n) for t, n in zip(texts, counts, strict=True)
    ]
    found = np.array(sorted((row["compression_ratio"], row["characters_per_token"]) for row in rows))
    assert found == pytest.approx(np.array(sorted(wanted)))
    assert all(row["nll_sum"] is None and 0 < row["lexical_diversity"] <= 1 for row in rows)
    (found,) = stats(tmp_path / "data")
    assert (found.ppl, found.num_scored, found.bits_per_byte) == (None, None, None)


def test_lexical_diversity_counts_words_and_neighbouring_characters() -> None:
    assert signals_of(b"The cat saw the CAT.", 5).lexical_diversity == 3 / 5
    # 民法 法典 民法 法典 on both sides of the comma: 2 of 4; "GPT" is a word of its own.
    assert signals_of("民法典，民法典 GPT4".encode(), 5).lexical_diversity == 3 / 5
    assert signals_of(("w" + " w" * 5000).encode(), 9).lexical_diversity == 1 / 1000
    assert signals_of(b"...", 1).lexical_diversity is None
    assert signals_of(b"", 0).compression_ratio is None


def test_signals_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    tiny.manifest(tmp_path / "data", SOURCES)
    with pytest.raises(ConfigError, match="another tokenizer than the one"):
        score_ppl(options(tmp_path / "data", None, tokenizer=corpus.hf_folder(tmp_path / "tokenizer")))


def test_signals_do_not_replace_a_models_scores(tmp_path: Path) -> None:
    from tools.data.preprocess import PreprocessOptions, preprocess

    tokenizer = corpus.hf_folder(tmp_path / "tokenizer")
    source = corpus.write_jsonl(tmp_path / "pages.jsonl", corpus.documents(20))
    data = tmp_path / "data"
    preprocess(PreprocessOptions(inputs=(str(source),), tokenizer=tokenizer, out=data))
    hf = tiny.hf_folder(tmp_path / "hf", vocab_size=700, num_hidden_layers=1)
    score_ppl(options(data, hf))
    manifest = read_manifest(data)
    before = scores_of(manifest)
    with pytest.raises(ConfigError, match=r"holds a model's scores; keep the signals apart with --name signals"):
        score_ppl(options(data, None, tokenizer=tokenizer))
    score_ppl(options(data, None, tokenizer=tokenizer, name="signals"))
    assert scores_of(manifest) == before
    score_ppl(options(data, hf, tokenizer=tokenizer))  # both at once replace the first
    both = scores_of(manifest)
    score_ppl(options(data, hf))  # the same model again, and no signals asked for: it is scored already
    assert scores_of(manifest) == both
    (shard,) = manifest.sources[0].shards
    rows = open_scores(manifest.shard_prefix(shard), shard, "default").read().to_pylist()
    assert all(row["nll_sum"] > 0 and row["compression_ratio"] > 0 for row in rows)
