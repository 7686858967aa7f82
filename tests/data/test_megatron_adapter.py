"""A schedule inside Megatron-LM: items field by field beside its own GPTDataset, batches by the rule of its sampler.

Everything of Megatron-LM here is megatron-core's own code; docs/megatron_lm.md tells of a run of pretrain_gpt.py.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import megatron_synE.runtime.mcore  # noqa: F401  # the CPU view must precede anything of megatron.core

# isort: split
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.core.datasets.utils import Split
from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer
from torch.utils.data import DataLoader

from data_mixers.errors import ConfigError
from data_mixers.manifest import ShardEntry, SourceEntry, TokenizerIdentity, read_manifest
from data_mixers.sampling import Sampler
from data_mixers.schedule import Schedule, scheduled_source
from megatron_synE.data.batch import sample_indices
from megatron_synE.data.indexed import IndexedWriter
from megatron_synE.data.megatron_adapter import MegatronScheduledDataset, schedule_and_manifests, scheduled_datasets
from megatron_synE.data.tokenizers import load_tokenizer
from tests import tiny
from tests.data_mixers.orders import addresses
from tests.tools import corpus
from tools.data_path import import_data_path
from tools.mix_commands import DataPathOptions

SEQ_LENGTH = 64
# Four documents, long enough for windows of one document and for windows with two.
LONG = ["\n".join(corpus.documents(8, seed=seed)) for seed in range(4)]


class RunTokenizer(NullTokenizer):  # type: ignore[misc]
    """megatron-core's null tokenizer with the ids of a real one, and a pad id that no control token has."""

    def __init__(self, identity: TokenizerIdentity, *, pad: int) -> None:
        super().__init__(identity.vocab_size)
        self._num_ids, self._eod_id = identity.vocab_size, identity.eos_id
        self.pad = pad
        self.special_tokens_dict = {"eod_token": identity.eos_id, "pad_token": pad}

    @property
    def vocab_size(self) -> int:
        """megatron-core 0.16 counts one more than it is given, 0.19 does not."""
        return self._num_ids


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """megatron-core's builders ask torch.distributed for their rank."""
    starts_here = not dist.is_initialized()
    if starts_here:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if starts_here:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token files a and b by megatron-core's own builder, and in root/mix what their weight list becomes."""
    root = tmp_path_factory.mktemp("adapter")
    tokenizer = load_tokenizer(corpus.hf_folder(root / "tokenizer"))
    for name, texts in (("a", LONG), ("b", corpus.documents(150, seed=150))):
        builder = IndexedDatasetBuilder(str(root / f"{name}_text_document.bin"), dtype=np.uint16)
        for ids in tokenizer.encode_ordinary_batch(texts):
            builder.add_item(torch.from_numpy(np.append(ids, tokenizer.eos_id)))
            builder.end_document()
        builder.finalize(str(root / f"{name}_text_document.idx"))
    import_data_path(
        DataPathOptions(
            data_path=("0.1", f"{root}/a_text_document", "0.9", f"{root}/b_text_document"),
            tokenizer=root / "tokenizer", out=root / "mix", seq_length=SEQ_LENGTH, tokens=48 * SEQ_LENGTH,
        )
    )  # fmt: skip
    return root


def config_of(root: Path, *, pad: int = -1, **changes: Any) -> GPTDatasetConfig:
    tokenizer = RunTokenizer(read_manifest(root / "mix").tokenizer, pad=pad)
    fields = {
        "random_seed": 1, "sequence_length": SEQ_LENGTH, "blend": ([str(root / "mix")], None), "split": "1,0,0",
        "reset_position_ids": False, "reset_attention_mask": False, "eod_mask_loss": False,
        "path_to_cache": str(root / "cache"), "tokenizer": tokenizer,
    }  # fmt: skip
    return GPTDatasetConfig(**(fields | changes))


def train_dataset(root: Path, num_samples: int = 48, **changes: Any) -> MegatronScheduledDataset:
    train, valid, test = scheduled_datasets([num_samples, 0, 0], lambda: True, config_of(root, **changes))
    assert train is not None and valid is None and test is None
    return train


def in_file_order(root: Path, name: str, config: GPTDatasetConfig) -> tuple[GPTDataset, list[int]]:
    """megatron-core's dataset of one file, one epoch, documents unshuffled, and the item that each window is."""
    file = IndexedDataset(str(root / f"{name}_text_document"))
    for seed in range(200):  # of the documents' order: four have 24
        config.random_seed = seed
        dataset = GPTDataset(file, str(root / name), np.arange(len(file)), None, Split.train, config)
        if dataset.document_index.tolist() == list(range(len(file))):
            return dataset, np.argsort(dataset.shuffle_index).tolist()
    raise AssertionError("no seed leaves the documents in order")


@pytest.mark.parametrize(
    ("positions", "attention", "loss", "mask"), list(itertools.product([False, True], repeat=4))
)  # fmt: skip
def test_an_item_equals_that_of_gptdataset_in_every_field(
    root: Path, positions: bool, attention: bool, loss: bool, mask: bool
) -> None:
    options = {
        "reset_position_ids": positions, "reset_attention_mask": attention, "eod_mask_loss": loss,
        "create_attention_mask": mask,
        "pad": int(np.fromfile(root / "a_text_document.bin", dtype=np.uint16)[5]),  # so that its rule masks something
    }  # fmt: skip
    theirs, places = in_file_order(root, "a", config_of(root, **options))
    manifest = read_manifest(root / "mix")
    source = scheduled_source(manifest.sources[0])
    schedule = Schedule(seed=1, seq_length=SEQ_LENGTH, sources=(source,))
    windows = (manifest.sources[0].num_tokens - SEQ_LENGTH) // SEQ_LENGTH
    schedule = schedule.append_weights("all", num_samples=windows, weights={source.name: 1 << 32})
    ours = MegatronScheduledDataset(schedule, [manifest], config_of(root, **options))
    assert windows >= 3 and len(places) >= windows
    boundaries = pads = 0
    for sample, address in enumerate(addresses(Sampler(schedule), 0, windows)):
        window = address.token_offset // SEQ_LENGTH
        # GPTDataset 0.16.1 writes the pads of its first item into the loss mask that it keeps for all later ones.
        theirs.masks_and_position_ids_are_cached = False
        expected, found = theirs[places[window]], ours[sample]
        assert found.pop("dataset_id") == 0
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
            assert torch.equal(found[key], value), key
        boundaries += int((expected["tokens"] == theirs.config.tokenizer.eod).sum())
        pads += int((expected["loss_mask"] == 0).sum())
    assert boundaries >= 2 and pads > 0  # documents end inside the windows, and the pad id does occur
    batch_padding, expected = ours[None], theirs[None]
    assert batch_padding["loss_mask"].sum() == 0 and expected["loss_mask"].sum() == 0


@pytest.mark.parametrize(("data_parallel_size", "micro_batch_size", "num_workers"), [(1, 4, 0), (2, 2, 2), (4, 1, 1)])
@pytest.mark.parametrize("consumed_samples", [0, 16])
def test_the_batches_are_the_schedule_under_any_layout_number_of_workers_and_start(
    root: Path, data_parallel_size: int, micro_batch_size: int, num_workers: int, consumed_samples: int
) -> None:
    """The rule of MegatronPretrainingSampler, which megatron-core does not ship; it is tried in docs/megatron_lm.md."""
    dataset = train_dataset(root)
    ranks = [
        DataLoader(
            dataset,
            batch_sampler=list(
                sample_indices(
                    consumed_samples=consumed_samples, total_samples=len(dataset), global_batch_size=8,
                    micro_batch_size=micro_batch_size, data_parallel_rank=rank, data_parallel_size=data_parallel_size,
                )
            ),
            num_workers=num_workers,
        )
        for rank in range(data_parallel_size)
    ]  # fmt: skip
    found = [row for together in zip(*ranks, strict=True) for batch in together for row in batch["tokens"].tolist()]
    assert found == slowly_read(root)[consumed_samples:]


def slowly_read(root: Path) -> list[list[int]]:
    """The windows of the schedule, cut from the original files."""
    schedule, _ = schedule_and_manifests(root / "mix")
    flat = {f"und/web/{name}": np.fromfile(root / f"{name}_text_document.bin", dtype=np.uint16) for name in "ab"}
    return [
        flat[schedule.sources[place.source_index].name][place.token_offset :][:SEQ_LENGTH].tolist()
        for place in addresses(Sampler(schedule), 0, schedule.num_samples)
    ]


def test_a_rank_that_holds_no_data_gets_none(root: Path) -> None:
    assert scheduled_datasets([48, 0, 0], lambda: False, config_of(root)) == (None, None, None)


def test_validation_stays_megatrons_own(root: Path) -> None:
    blends = [([str(root / "mix")], None), ([str(root / "b_text_document")], None), None]
    config = config_of(root, blend=None, split=None, blend_per_split=blends)
    train, valid, test = scheduled_datasets([40, 5, 0], lambda: True, config)
    assert train is not None and len(train) == 48 and test is None
    assert isinstance(valid, GPTDataset) and len(valid) >= 5 and valid.index_split == Split.valid


@pytest.mark.parametrize(
    ("num_samples", "changes", "message"),
    [
        (49, {}, r"asks for 49 samples, the schedule in .*mix has 48; lower --train-samples"),
        (48, {"sequence_length": 32}, r"--seq-length 32 is not the schedule's 64"),
        (48, {"blend": (["a", "b"], [1.0, 2.0])}, r"must name one schedule.*syne mix import-data-path"),
        (48, {"tokenizer": NullTokenizer(599)}, r"(600 ids and EOD 599|599 ids and EOD 598), that of .*mix \d+ "),
        (48, {"add_extra_token_to_sequence": False}, r"one token more"),
    ],
)
def test_a_run_that_does_not_fit_the_schedule_is_refused(
    root: Path, num_samples: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_dataset(root, num_samples, **changes)


def test_a_run_of_ours_can_be_named_too(tmp_path: Path) -> None:
    """A YAML file stands for its plan, a run folder for the schedule it has come to."""
    config = tiny.prepared(tmp_path)
    plan, manifests = schedule_and_manifests(config)
    assert plan.num_samples == 40 and plan.seq_length == 32
    assert [manifest.folder for manifest in manifests] == [tmp_path / "train"]
    run = tmp_path / "run"
    run.mkdir()
    (run / "run_config.yaml").write_bytes(config.read_bytes())
    decided = plan.skip(8, 16, consumed_samples=8)
    (run / "schedule.json").write_text(decided.to_json())
    assert schedule_and_manifests(run) == (decided, manifests)


def test_samples_to_skip_that_the_run_would_refuse_are_refused_here_too(tmp_path: Path) -> None:
    tree = tiny.run_tree(tmp_path, hf=None)
    tiny.manifest(tmp_path / "train", {("zh", "web", "law"): 6000, ("en", "web", "computing"): 9000})
    stage = {"tokens": 20 * 8 * 32, "languages": {"zh": 0.5, "en": 0.5}}
    other = {**stage, "languages": {"zh": 0.9, "en": 0.1}}
    tree["data"] |= {
        "manifests": [str(tmp_path / "train")],
        "stages": [{"name": "one", **stage}, {"name": "two", **other}],
    }
    tree["data"]["skip_samples"] = ["312:400"]
    with pytest.raises(ConfigError, match="skip 312:400 must be a range of samples"):
        schedule_and_manifests(tiny.write_run(tmp_path, tree))


def test_data_of_a_stage_of_its_own_is_read_from_that_stage_on_and_no_other_is_lost(tmp_path: Path) -> None:
    """Shares by the tokens present, worked out from the manifests: half of each language's text."""
    zh, more_zh, late = ("zh", "web", "law"), ("zh", "web", "food"), ("en", "qa", "math")
    sources = {"a": {zh: 6000, ("en", "web", "computing"): 9000}, "b": {more_zh: 3000}, "late": {late: 4500}}
    made = {name: tiny.manifest(tmp_path / name, of) for name, of in sources.items()}
    tokens = {s.name: s.num_tokens for m in made.values() for s in m.sources}
    tree = tiny.run_tree(tmp_path, hf=None)
    half = {"tokens": 20 * 8 * 32, "languages": {"zh": 0.5, "en": 0.5}}
    tree["data"] |= {
        "manifests": [str(tmp_path / "a"), str(tmp_path / "b")],
        "stages": [{"name": "one", **half}, {"name": "two", **half, "manifests": [str(tmp_path / "late")]}],
    }
    plan, manifests = schedule_and_manifests(tiny.write_run(tmp_path, tree))
    english = ("en/web/computing", "en/qa/math")
    for phase, present in zip(plan.phases, (tokens.keys() - {"en/qa/math"}, tokens.keys()), strict=True):
        weights = {name: weight / 2**32 for name, weight in phase.weights}
        assert weights.keys() == present
        for group in (present & set(english), present - set(english)):
            whole = sum(tokens[name] for name in group)
            for name in group:
                assert weights[name] == pytest.approx(0.5 * tokens[name] / whole, abs=1e-6)
    assert [manifest.folder.name for manifest in manifests] == ["a", "b", "late"]


def test_what_fills_up_a_window_of_whole_documents_is_no_target(root: Path, tmp_path: Path) -> None:
    """Documents of 50 and of 64 tokens: 14 EOD fill up the first window, and follow on the document's own."""
    identity = read_manifest(root / "mix").tokenizer
    eod = identity.eos_id
    body = [token for token in range(3, 70) if token != eod]
    with IndexedWriter(tmp_path / "whole", dtype="uint16") as pair:
        for document in ([*body[:49], eod], [eod] * 14, [*body[:63], eod], [eod]):
            pair.add_document(np.array(document))
    assert pair.written is not None
    shard = ShardEntry(prefix="whole", text_bytes=1, **vars(pair.written))
    entry = SourceEntry(name="en/qa/math", language="en", source="qa", topic="math", bucket=None, role="train",
                        shards=(shard,), packed_seq_length=SEQ_LENGTH)  # fmt: skip
    manifest = replace(read_manifest(root / "mix"), folder=tmp_path, sources=(entry,))
    source = scheduled_source(entry)
    schedule = Schedule(seed=1, seq_length=SEQ_LENGTH, sources=(source,))
    schedule = schedule.append_weights("all", num_samples=2, weights={source.name: 1 << 32})
    dataset = MegatronScheduledDataset(schedule, [manifest], config_of(root))
    filled, full = sorted((dataset[0], dataset[1]), key=lambda item: int(item["loss_mask"][0:50].sum()))
    assert filled["loss_mask"].tolist() == [1.0] * 49 + [0.0] * 14 + [1.0]
    assert full["loss_mask"].tolist() == [1.0] * 63 + [0.0]
