"""`syne mix import-data-path`: a Megatron-LM weight list to a schedule, from files that megatron-core has written."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import megatron_synE.runtime.mcore  # noqa: F401  # the CPU view must precede anything of megatron.core

# isort: split
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from megatron.core.datasets.utils import get_blend_from_list

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import read_manifest
from data_mixers.sampling import Sampler
from data_mixers.schedule import read_schedule
from megatron_synE.data.scheduled_dataset import ScheduledDataset
from megatron_synE.data.tokenizers import load_tokenizer
from tests import tiny
from tests.data_mixers.orders import addresses
from tests.tools import corpus
from tools.cli import main
from tools.data_path import parse_data_path

SEQ_LENGTH = 32


def built(prefix: Path, documents: list[list[list[int]]]) -> Path:
    """By megatron-core: documents of one or more sequences."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for document in documents:
        for sequence in document:
            builder.add_item(torch.tensor(sequence))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain: one sequence a document; sentences: several; merged: plain, then sentences, by Megatron's way to merge."""
    root = tmp_path_factory.mktemp("files")
    tokenizer = load_tokenizer(corpus.hf_folder(root / "tokenizer"))
    ids = [[*row.tolist(), tokenizer.eos_id] for row in tokenizer.encode_ordinary_batch(corpus.documents(120))]
    built(root / "plain_text_document", [[row] for row in ids[:70]])
    built(root / "en__web__law_text_document", [[row[:7], row[7:9], row[9:]] for row in ids[70:]])
    builder = IndexedDatasetBuilder(str(root / "merged.bin"), dtype=np.uint16)
    builder.add_index(str(root / "plain_text_document"))
    builder.add_index(str(root / "en__web__law_text_document"))
    builder.finalize(str(root / "merged.idx"))
    return root


def imported(root: Path, out: Path, *words: object, tokens: int = 40 * SEQ_LENGTH, more: tuple[str, ...] = ()) -> int:
    return main(
        [
            "mix", "import-data-path", *map(str, words), "--tokenizer", str(root / "tokenizer"), "--out", str(out),
            "--seq-length", str(SEQ_LENGTH), "--tokens", str(tokens), *more,
        ]
    )  # fmt: skip


def test_weights_become_shares_and_samples_the_tokens_of_the_files(root: Path, tmp_path: Path) -> None:
    plain, law = root / "plain_text_document", root / "en__web__law_text_document"
    assert imported(root, tmp_path / "mix", 30, plain, 10, law) == 0
    schedule, manifest = read_schedule(tmp_path / "mix"), read_manifest(tmp_path / "mix")
    names = [source.name for source in schedule.sources]
    assert names == ["en/web/law", "und/web/plain"]
    assert Sampler(schedule).cursors(40) == (10, 30)  # of 40 samples at 1 : 3
    dataset = ScheduledDataset(schedule, [manifest])
    flat = [np.fromfile(f"{prefix}.bin", dtype=np.uint16) for prefix in (law, plain)]
    for number, place in enumerate(addresses(Sampler(schedule), 0, 40)):
        window = flat[place.source_index][place.token_offset : place.token_offset + SEQ_LENGTH + 1]
        assert np.array_equal(dataset[number].tokens, window)
    assert sum(path.is_symlink() for path in (tmp_path / "mix").iterdir()) == 4  # nothing is copied


def test_files_of_many_sequences_a_document_and_merged_ones_keep_their_documents(root: Path, tmp_path: Path) -> None:
    assert imported(root, tmp_path / "mix", root / "merged") == 0
    (source,) = read_manifest(tmp_path / "mix").sources
    assert (source.name, source.num_documents) == ("und/web/merged", 120)
    dataset = ScheduledDataset(read_schedule(tmp_path / "mix"), [read_manifest(tmp_path / "mix")])
    eos_id = read_manifest(tmp_path / "mix").tokenizer.eos_id
    for number in range(len(dataset)):
        sample = dataset[number]
        behind_eos = np.flatnonzero(sample.tokens[: SEQ_LENGTH - 1] == eos_id) + 1
        assert sample.document_starts.tolist() == [0, *behind_eos.tolist()]


def test_prefixes_without_weights_weigh_by_their_tokens(root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{root / 'plain_text_document'}\n{root / 'en__web__law_text_document'}\n")
    assert imported(root, tmp_path / "mix", more=("--data-args-path", str(listed))) == 0
    manifest = read_manifest(tmp_path / "mix")
    total = sum(source.num_tokens for source in manifest.sources)
    weights = dict(read_schedule(tmp_path / "mix").phases[0].weights)
    for source in manifest.sources:
        assert abs(Fraction(weights[source.name], 1 << 32) - Fraction(source.num_tokens, total)) < 1e-9


@pytest.mark.parametrize(
    "words", [["30", "a", "70", "b"], ["a", "b"], ["a", "b", "c"], ["a"], ["0.5", "x/1", "1e-3", "y"]]
)
def test_a_list_is_understood_as_megatron_understands_it(words: list[str]) -> None:
    prefixes, weights = get_blend_from_list(words)
    assert parse_data_path(words) == dict(zip(prefixes, weights or [None] * len(prefixes), strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-1", "a", "2", "b"], "'-1' before a is not a weight"),
        (["nan", "a", "2", "b"], "'nan' before a is not a weight"),
        (["inf", "a", "2", "b"], "'inf' before a is not a weight"),
        (["0", "a", "0.0", "b"], r"all weights are 0 \(a, b\)"),
        (["30", "a", "b", "70"], "'b' before 70 is not a weight"),
        (["30", "a", "b"], "must stand in turn"),
        ([], "is empty"),
    ],
)
def test_weights_that_are_none_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_data_path(words)


def test_new_weights_from_a_sample_on_change_nothing_before_it(root: Path, tmp_path: Path) -> None:
    plain, law, mix = root / "plain_text_document", root / "en__web__law_text_document", tmp_path / "mix"
    assert imported(root, mix, 1, plain, 1, law) == 0
    before = read_schedule(mix)
    assert imported(root, mix, 9, plain, 1, law) == 2  # a run may read it: --from-sample must be said
    assert read_schedule(mix) == before
    more = ("--from-sample", "30", "--max-epochs", "9")
    assert imported(root, mix, 9, plain, 1, root / "merged", tokens=50 * SEQ_LENGTH, more=more) == 0
    after = read_schedule(mix)
    assert after.num_samples == 80
    assert addresses(Sampler(after), 0, 30) == addresses(Sampler(before), 0, 30)
    assert after.past_digest(30) == before.past_digest(30)
    names = [source.name for source in after.sources]
    drawn = [names[place.source_index] for place in addresses(Sampler(after), 30, 80)]
    assert abs(drawn.count("und/web/plain") - 45) <= 2 and "en/web/law" not in drawn


def test_an_interrupted_import_goes_on_without_reading_finished_files_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tools.data_path as module

    plain, merged = root / "plain_text_document", root / "merged"
    described: list[str] = []
    shipped = module._describe

    def stops_at_the_second(*arguments: object) -> object:
        described.append(str(arguments[1]))
        if len(described) == 2:
            raise KeyboardInterrupt
        return shipped(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_describe", stops_at_the_second)
    assert imported(root, tmp_path / "mix", 1, plain, 1, merged) == 130
    assert not (tmp_path / "mix/schedule.json").exists()
    assert imported(root, tmp_path / "mix", 1, plain, 1, merged) == 0
    assert described == ["und/web/plain", "und/web/merged", "und/web/merged"]
    assert [source.name for source in read_manifest(tmp_path / "mix").sources] == ["und/web/merged", "und/web/plain"]


def test_a_file_with_a_hole_between_its_sequences_is_refused_with_the_cure(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An .idx whose sequences leave out the middle of the .bin, as an index over a part of a file would."""
    prefix = built(tmp_path / "holes", [[[5] * 40], [[6] * 40], [[7] * 40]])
    builder = IndexedDatasetBuilder(str(tmp_path / "part.bin"), dtype=np.uint16)
    builder.sequence_lengths, builder.document_indices = [40, 40], [0, 1, 2]
    builder.finalize(str(tmp_path / "part.idx"))
    raw = bytearray((tmp_path / "part.idx").read_bytes())
    raw[34 + 8 + 8 : 34 + 8 + 16] = (160).to_bytes(8, "little")  # the second pointer: to the third sequence
    (tmp_path / "part.idx").write_bytes(raw)
    Path(f"{prefix}.bin").replace(tmp_path / "part.bin")
    assert imported(root, tmp_path / "mix", tmp_path / "part") == 3
    assert "do not lie end to end" in (message := capsys.readouterr().err) and "write the pair again" in message
    assert not (tmp_path / "mix/schedule.json").exists()


def test_files_of_another_tokenizer_are_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By an id that the tokenizer does not have, and by the folder's own identity."""
    built(tmp_path / "large", [[[5] * 50, [60_000, 6]]])
    assert imported(root, tmp_path / "mix", tmp_path / "large") == 3
    assert "token id 60000 at token 50 is outside the vocabulary" in capsys.readouterr().err
    assert imported(root, tmp_path / "ours", root / "merged") == 0
    corpus.hf_folder(tmp_path / "tokenizer", vocab_size=500)
    more = ("--from-sample", "40")
    assert imported(tmp_path, tmp_path / "ours", root / "merged", more=more) == 2
    assert "another tokenizer" in capsys.readouterr().err


def test_a_source_shorter_than_a_sample_is_refused_by_name(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built(tmp_path / "short", [[[5] * SEQ_LENGTH]])
    assert imported(root, tmp_path / "mix", 1, tmp_path / "short", 1, root / "merged") == 2
    assert "und/web/short is too small" in capsys.readouterr().err
    assert not (tmp_path / "mix/schedule.json").exists()


def test_documents_without_eos_are_said(root: Path, tmp_path: Path) -> None:
    built(tmp_path / "bare", [[[5] * 40], [[6] * 40]])
    done = tiny.syne(
        "mix", "import-data-path", tmp_path / "bare", "--tokenizer", root / "tokenizer", "--out", tmp_path / "mix",
        "--seq-length", SEQ_LENGTH, "--tokens", SEQ_LENGTH,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of 2 documents looked at do not end with EOS" in done.stderr
    assert "und/web/bare: 1.000000" in done.stdout


def test_two_files_that_would_be_one_source_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    built(tmp_path / "x/merged", [[[5] * 40]])
    assert imported(root, tmp_path / "mix", root / "merged", tmp_path / "x/merged", root / "plain_text_document") == 2


def test_a_missing_file_is_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(root, tmp_path / "mix", tmp_path / "nothing") == DataError.exit_code
    assert str(tmp_path / "nothing.bin") in capsys.readouterr().err
