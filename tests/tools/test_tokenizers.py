"""Every kind of tokenizer: ids as its own library gives them, control spellings stay text, identity is meaning."""

import base64
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_mixers.errors import ConfigError, DataError
from megatron_synE.data import engine_check, tokenizer_engines, tokenizers
from megatron_synE.data.tokenizers import load_tokenizer
from tests.tools import corpus

SPELT = "a<|end_of_text|>b <|im_end|><|begin_of_text|></s><s> 你好<unk>"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_check, "NUM_CHECK_STRINGS", 500)  # the full number takes a second each


@pytest.fixture
def small_llama3_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiktoken file in Llama-3's form with 300 tokens instead of 128,000."""
    monkeypatch.setattr(tokenizer_engines, "LLAMA3_NUM_RANKS", 300)
    tokens = [bytes([byte]) for byte in range(256)]
    for pair in ("th", "he", "in", "an", "re", " t", " a", "的", "法", "on", "er", "or", "en", "<|", "|>"):
        raw = pair.encode()
        tokens += [raw[:2], raw][len(raw) == 2 :] if raw[:2] not in tokens else []
    while len(tokens) < 300:
        tokens.append(b" a" + bytes([len(tokens) - 200]))
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


@pytest.fixture(params=["unigram", "bpe"])
def sentencepiece_file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    import sentencepiece

    (tmp_path / "text.txt").write_text("\n".join(corpus.documents(300)), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "sp"), vocab_size=420, model_type=request.param,
        byte_fallback=True, user_defined_symbols=["<|im_end|>"], minloglevel=2, num_threads=1, hard_vocab_limit=False,
    )  # fmt: skip
    return tmp_path / "sp.model"


@pytest.fixture
def hf_unigram_file(tmp_path: Path) -> Path:
    """Pieces of a Unigram model hold the control spellings, so the model itself would honour them."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    letters = [(chr(c), -5.0) for c in range(32, 127)]
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *letters], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([AddedToken("</s>"), AddedToken("<unk>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_hf_ids_equal_hf_tokenizers_and_run_on_fastokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = corpus.hf_folder(tmp_path / "hf")
    ours = load_tokenizer(folder)
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [*corpus.documents(300, seed=5), "", " ", "\n\n 混合 mixed\ttext🎉 e\u0301"]
    assert [ids.tolist() for ids in ours.encode_ordinary_batch(texts)] == [
        theirs.encode(text, add_special_tokens=False).ids for text in texts
    ]
    assert ours.engine_name == "fastokens"
    assert ours.vocab_size == theirs.get_vocab_size(with_added_tokens=True)
    assert ours.eos_id == theirs.token_to_id("<|end_of_text|>")
    assert ours.bos_id == theirs.token_to_id("<|begin_of_text|>")


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_hf_never_makes_a_control_id_of_text(tmp_path: Path, engine: str) -> None:
    from tokenizers import Tokenizer

    folder = corpus.hf_folder(tmp_path / "hf")
    tokenizer = load_tokenizer(folder, engine=engine)  # type: ignore[arg-type]
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    control = {theirs.token_to_id(token) for token in corpus.CONTROL}
    assert control & set(theirs.encode(SPELT).ids) == control  # left alone, the library honours all three
    (ids,) = tokenizer.encode_ordinary_batch([SPELT])
    assert not control & set(ids.tolist())
    assert theirs.decode(ids.tolist(), skip_special_tokens=False) == SPELT


def test_hf_unigram_never_makes_a_control_id_of_text(hf_unigram_file: Path) -> None:
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(hf_unigram_file))
    theirs.encode_special_tokens = True
    assert 1 in theirs.encode("ab</s>cd", add_special_tokens=False).ids  # the trap
    tokenizer = load_tokenizer(hf_unigram_file)
    plain, spelt = tokenizer.encode_ordinary_batch(["abcd", "ab</s>cd"])
    assert 1 not in spelt
    assert [theirs.id_to_token(i) for i in spelt.tolist() if theirs.id_to_token(i) in "</s>"] == list("</s>")
    assert theirs.encode("abcd", add_special_tokens=False).ids == plain.tolist()


def test_tiktoken_ids_equal_tiktoken_and_control_stays_text(small_llama3_file: Path) -> None:
    tokenizer = load_tokenizer(small_llama3_file)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (556, 300, 301)
    tokens = [base64.b64decode(line.split()[0]) for line in small_llama3_file.read_bytes().splitlines()]
    for text, ids in zip(
        [SPELT, *corpus.documents(50)], tokenizer.encode_ordinary_batch([SPELT, *corpus.documents(50)]), strict=True
    ):
        assert ids.max() < 300
        assert b"".join(tokens[i] for i in ids.tolist()).decode() == text


def test_tiktoken_runs_on_fastokens_with_tiktoken_s_ids(small_llama3_file: Path) -> None:
    import tiktoken

    ranks = {base64.b64decode(line.split()[0]): n for n, line in enumerate(small_llama3_file.read_bytes().splitlines())}
    pattern = tokenizer_engines.LLAMA3_PATTERN
    theirs = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    tokenizer = load_tokenizer(small_llama3_file)
    assert tokenizer.engine_name == "fastokens"
    texts = [SPELT, "", *corpus.documents(300, seed=8), *engine_check.check_strings(("<|eot_id|>",), 300)]
    found = tokenizer.encode_ordinary_batch(texts)
    assert [ids.tolist() for ids in found] == [theirs.encode_ordinary(text) for text in texts]
    again = load_tokenizer(small_llama3_file)
    assert again.identity() == load_tokenizer(small_llama3_file, engine="reference").identity()
    assert again.encode_ordinary_batch(texts)[0].tolist() == found[0].tolist()


def test_merges_that_never_happen_are_left_out_and_no_id_changes(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = corpus.hf_folder(tmp_path / "hf")
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    trained = [tuple(merge) for merge in content["model"]["merges"]]
    every_cut = [
        (spelling[:place], spelling[place:])
        for spelling in sorted(vocabulary, key=vocabulary.__getitem__)
        for place in range(1, len(spelling))
        if spelling[:place] in vocabulary and spelling[place:] in vocabulary
    ]  # as Llama-3's file has them
    content["model"]["merges"] = [list(pair) for pair in every_cut]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    engine = tokenizer_engines.open_hf(folder / "tokenizer.json")
    assert engine.fast_json is not None
    quick = engine.fast_json()
    kept = [tuple(merge.split(" ")) for merge in json.loads(quick)["model"]["merges"]]
    assert kept == trained  # each token is made as the training made it
    assert len(trained) < len(every_cut)
    texts = [*corpus.documents(300, seed=6), *engine_check.check_strings(("<|eot_id|>",), 300)]
    with_all, with_kept = Tokenizer.from_file(str(folder / "tokenizer.json")), Tokenizer.from_str(quick)
    for text in texts:
        assert with_kept.encode(text).ids == with_all.encode(text).ids


@pytest.mark.skipif(not sys.platform.startswith("linux") or (os.cpu_count() or 1) < 2, reason="counts Linux threads")
def test_fastokens_encodes_on_the_thread_that_calls_it(tmp_path: Path) -> None:
    """Its further threads would each learn the words anew, and nothing but this count tells of them."""
    folder = corpus.hf_folder(tmp_path / "hf")
    code = (
        "import os, sys; from pathlib import Path; from megatron_synE.data import tokenizer_engines as engines\n"
        "encode = engines.open_fast(Path(sys.argv[1]).read_text())\n"
        "before = len(os.listdir('/proc/self/task')); encode(['some words'] * 1000)\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "FASTOKENS_BPE_THREADS"}
    command = [sys.executable, "-c", code, str(folder / "tokenizer.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_an_unknown_tiktoken_file_is_refused_with_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(DataError, match=r"qwen\.tiktoken has 2 tokens.*tokenizer\.json instead"):
        load_tokenizer(path)


def test_sentencepiece_ids_equal_sentencepiece_and_control_stays_text(sentencepiece_file: Path) -> None:
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    tokenizer = load_tokenizer(sentencepiece_file)
    texts = corpus.documents(100, seed=3)
    assert [ids.tolist() for ids in tokenizer.encode_ordinary_batch(texts)] == theirs.encode(texts)
    control = {theirs.bos_id(), theirs.eos_id(), theirs.piece_to_id("<|im_end|>")}
    assert theirs.piece_to_id("<|im_end|>") in theirs.encode(SPELT)  # left alone, a user-defined symbol is honoured
    (ids,) = tokenizer.encode_ordinary_batch([SPELT])
    assert not control & set(ids.tolist())
    assert (tokenizer.eos_id, tokenizer.bos_id) == (theirs.eos_id(), theirs.bos_id())


def test_equal_meaning_gives_equal_identity_whatever_the_file_looks_like(tmp_path: Path) -> None:
    folder = corpus.hf_folder(tmp_path / "hf")
    identity = load_tokenizer(folder).identity()
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(content, indent=7))
    assert load_tokenizer(folder).identity() == identity
    assert load_tokenizer(folder, engine="reference").identity() == identity


def test_swapped_ids_and_other_merges_change_the_identity(tmp_path: Path) -> None:
    folder = corpus.hf_folder(tmp_path / "hf")
    identity = load_tokenizer(folder).identity()
    original = (folder / "tokenizer.json").read_text()
    content = json.loads(original)
    vocabulary = content["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    swapped = load_tokenizer(folder).identity()
    assert (swapped.vocab_size, swapped.eos_id) == (identity.vocab_size, identity.eos_id)
    assert swapped.digest != identity.digest
    content = json.loads(original)
    content["model"]["merges"] = content["model"]["merges"][::-1]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(folder).identity().digest != identity.digest


def test_a_fast_engine_with_other_ids_is_not_used_and_said_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = corpus.hf_folder(tmp_path / "hf")

    def honours_control(text: str) -> tokenizer_engines.Encode:
        from tokenizers import Tokenizer

        plain = Tokenizer.from_str((folder / "tokenizer.json").read_text())
        return lambda texts: tokenizer_engines.flatten([plain.encode(t, add_special_tokens=False).ids for t in texts])

    monkeypatch.setattr(engine_check, "open_fast", honours_control)
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(folder)
    assert tokenizer.engine_name == "reference"
    assert "other ids than the reference" in caplog.text
    assert tokenizer.eos_id not in tokenizer.encode_ordinary_batch([SPELT])[0]


def test_the_check_is_made_once_per_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = corpus.hf_folder(tmp_path / "hf")
    load_tokenizer(folder)
    records = list((tmp_path / "cache").rglob("*.json"))
    assert len(records) == 1
    records[0].write_text('{"equal": false}')
    assert load_tokenizer(folder).engine_name == "reference"


def test_a_user_without_a_home_folder_is_told_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number nobody has."""
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(ConfigError, match="no home folder to cache tokenizers in; export HOME or XDG_CACHE_HOME"):
        load_tokenizer(corpus.hf_folder(tmp_path / "hf"))


def test_a_proven_tokenizer_opens_without_its_file_being_read_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = corpus.hf_folder(tmp_path / "hf")
    first = load_tokenizer(folder)
    texts = [SPELT, *corpus.documents(20)]
    expected = [ids.tolist() for ids in first.encode_ordinary_batch(texts)]
    opened = []
    really_open = tokenizers._open
    monkeypatch.setattr(tokenizers, "_open", lambda file: opened.append(file) or really_open(file))
    again = load_tokenizer(folder)
    assert [ids.tolist() for ids in again.encode_ordinary_batch(texts)] == expected
    assert (again.engine_name, again.bos_id, again.identity()) == ("fastokens", first.bos_id, first.identity())
    assert not opened
    assert again.decode(again.encode_ordinary_batch([TEXT])[0].tolist()) == TEXT
    assert opened  # the vocabulary is read when it is needed
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert load_tokenizer(folder).eos_id == first.eos_id + 2  # a changed config is seen


@pytest.mark.parametrize("content", [b"{}", b""])
def test_a_damaged_copy_in_the_cache_is_made_anew(tmp_path: Path, content: bytes) -> None:
    folder = corpus.hf_folder(tmp_path / "hf")
    identity = load_tokenizer(folder).identity()
    (kept,) = (tmp_path / "cache").rglob("*.tokenizer")
    whole = kept.read_bytes()
    kept.write_bytes(content)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.engine_name, tokenizer.identity()) == ("fastokens", identity)
    assert kept.read_bytes() == whole


def test_a_tokenizer_without_eos_asks_for_it(tmp_path: Path) -> None:
    folder = corpus.hf_folder(tmp_path / "hf")
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder, eos_token="<|im_end|>").eos_id == load_tokenizer(folder).eos_id + 2
    with pytest.raises(ConfigError, match="'<eod>' is not a control token"):
        load_tokenizer(folder, eos_token="<eod>")


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer at .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text('{"model"')
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)


def test_flatten_keeps_rows_apart() -> None:
    ids, offsets = tokenizer_engines.flatten([[1, 2], [], [3]])
    assert ids.tolist() == [1, 2, 3]
    assert offsets.tolist() == [0, 2, 2, 3]
    assert ids.dtype == np.int32


TEXT = "民法典 1 and  x\n\tЖ🎉 e\u0301"


def test_byte_level_ids_give_the_text_back(tmp_path: Path, small_llama3_file: Path) -> None:
    for tokenizer in (load_tokenizer(corpus.hf_folder(tmp_path / "hf")), load_tokenizer(small_llama3_file)):
        (ids,) = tokenizer.encode_ordinary_batch([TEXT])
        assert tokenizer.text_bytes(np.append(ids, tokenizer.eos_id)).decode() == TEXT


def test_sentencepiece_ids_give_the_text_as_sentencepiece_decodes_it(sentencepiece_file: Path) -> None:
    import sentencepiece

    tokenizer = load_tokenizer(sentencepiece_file)
    (ids,) = tokenizer.encode_ordinary_batch([TEXT])
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    assert tokenizer.text_bytes(ids).decode() == theirs.decode(ids.tolist())
    assert "民法典" in tokenizer.text_bytes(ids).decode()
