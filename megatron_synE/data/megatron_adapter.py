"""A schedule as Megatron-LM's own training data: what a stock `pretrain_gpt.py` gets in place of a BlendedDataset.

docs/megatron_lm.md has the two lines to change there. Legend: s = sequence_length.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split

from data_mixers.errors import ConfigError
from data_mixers.manifest import MANIFEST_NAME, DatasetManifest, read_manifest
from data_mixers.schedule import SCHEDULE_NAME, Schedule, read_schedule
from megatron_synE.data.scheduled_dataset import ScheduledDataset


class MegatronScheduledDataset(MegatronDataset):
    """Sample i of a schedule as GPTDataset hands out samples, by number alone: no index, no cache, no shuffle.

    A MegatronDataset, so that Megatron's samplers, loaders and pad token rules take it for one of theirs. Two things
    differ from GPTDataset: documents begin where the .idx says so, not behind each EOD token; and the EOD that fill up
    windows of whole documents are no targets.
    Errors: ConfigError naming the option where the run and the schedule do not fit.
    """

    def __init__(self, schedule: Schedule, manifests: Sequence[DatasetManifest], config: GPTDatasetConfig) -> None:
        _check(schedule, manifests, config)
        samples = ScheduledDataset(schedule, manifests)
        super().__init__(samples, None, np.arange(0), schedule.num_samples, Split.train, config)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int | None) -> dict[str, torch.Tensor | int]:
        """tokens, labels, position_ids int64 [s]; loss_mask fp32 [s]; attention_mask bool [1, s, s], True where hidden.

        dataset_id: the source, as BlendedDataset adds it. None: the first sample with an empty loss mask, which is
        what Megatron pads a batch with.
        """
        sample = self.dataset[0 if idx is None else idx]
        text = torch.from_numpy(sample.tokens)
        tokens, labels = text[:-1].contiguous(), text[1:].contiguous()
        loss_mask = torch.ones(len(tokens), dtype=torch.float32)
        if self.config.eod_mask_loss:
            loss_mask[tokens == self.config.tokenizer.eod] = 0.0
        if self.dataset.schedule.sources[sample.source_index].packed_seq_length is not None:
            loss_mask[(tokens == self.config.tokenizer.eod) & (labels == self.config.tokenizer.eod)] = 0.0
        loss_mask[labels == self._pad_token_id] = 0.0
        if idx is None:
            loss_mask.zero_()
        tokens[tokens == self._pad_token_id] = 0
        labels[labels == self._pad_token_id] = 0
        item: dict[str, torch.Tensor | int] = {
            "dataset_id": sample.source_index,
            "tokens": tokens,
            "labels": labels,
            "loss_mask": loss_mask,
            "position_ids": _position_ids(sample.document_starts, len(tokens), reset=self.config.reset_position_ids),
        }
        if self.config.create_attention_mask:
            item["attention_mask"] = _hidden(
                sample.document_starts, len(tokens), reset=self.config.reset_attention_mask
            )
        return item


def scheduled_datasets(
    num_samples: Sequence[int], is_built_on_rank: Callable[[], bool], config: GPTDatasetConfig
) -> tuple[MegatronScheduledDataset | None, object, object]:
    """(train, valid, test) for `train_valid_test_datasets_provider`, in place of BlendedMegatronDatasetBuilder.

    --data-path or --train-data-path names the schedule (see `schedule_and_manifests`). --valid-data-path and
    --test-data-path are ordinary blends, built by Megatron; without them there is no validation.
    Collective: every rank calls it, as the builder. Ranks that `is_built_on_rank` excludes get None.
    Errors: ConfigError naming the option.
    """
    valid, test = None, None
    blends = config.blend_per_split if config.blend_per_split is not None else [config.blend, None, None]
    if blends[1] is not None or blends[2] is not None:
        theirs = copy.copy(config)
        theirs.blend_per_split = [None, blends[1], blends[2]]
        _, valid, test = BlendedMegatronDatasetBuilder(GPTDataset, num_samples, is_built_on_rank, theirs).build()
    if not is_built_on_rank():
        return None, valid, test
    prefixes = blends[0][0] if blends[0] is not None else []
    if len(prefixes) != 1:
        raise ConfigError(
            f"--data-path (or --train-data-path) must name one schedule, it is {prefixes}; make one of a list of "
            "weights and prefixes with `syne mix import-data-path`"
        )
    schedule, manifests = schedule_and_manifests(Path(prefixes[0]))
    if num_samples[0] > schedule.num_samples:
        raise ConfigError(
            f"the run asks for {num_samples[0]} samples, the schedule in {prefixes[0]} has {schedule.num_samples}; "
            "lower --train-samples (or --train-iters), or append a phase with `syne mix import-data-path --from-sample`"
        )
    return MegatronScheduledDataset(schedule, manifests, config), valid, test


def schedule_and_manifests(path: Path) -> tuple[Schedule, list[DatasetManifest]]:
    """The order and the files that a path stands for.

    path: a folder written by `syne mix import-data-path`; a run folder of ours, whose schedule.json holds its
    decisions; or a run's YAML file, whose plan is taken.
    Errors: ConfigError and DataError naming the file.
    """
    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        return read_schedule(path / SCHEDULE_NAME), [read_manifest(path)]
    from megatron_synE.config.examine import manifest_paths  # pydantic and yaml: only where a run of ours is read
    from megatron_synE.config.load import load_config
    from megatron_synE.mixing import mixture_of

    loaded = load_config(path / "run_config.yaml" if path.is_dir() else path, [])
    manifests = [read_manifest(manifest) for manifest in manifest_paths(loaded.resolved)]
    if path.is_dir():
        return read_schedule(path / SCHEDULE_NAME), manifests
    mixture = mixture_of(loaded.resolved, manifests)
    mixture.check_new_skips(())
    return mixture.schedule, manifests


def _check(schedule: Schedule, manifests: Sequence[DatasetManifest], config: GPTDatasetConfig) -> None:
    if config.sequence_length != schedule.seq_length:
        raise ConfigError(
            f"--seq-length {config.sequence_length} is not the schedule's {schedule.seq_length}; take that one"
        )
    if not config.add_extra_token_to_sequence:
        raise ConfigError("a schedule's windows have one token more than --seq-length; leave that token on")
    # In megatron-core 0.19; samples then hold other keys.
    if getattr(config, "inter_document_masking", False):
        raise ConfigError(
            "--dataloader-inter-document-masking is not built for schedules; use --reset-position-ids and "
            "--reset-attention-mask"
        )
    for manifest in manifests:
        identity, tokenizer = manifest.tokenizer, config.tokenizer
        if tokenizer.eod != identity.eos_id or tokenizer.vocab_size < identity.vocab_size:
            raise ConfigError(
                f"the run's tokenizer has {tokenizer.vocab_size} ids and EOD {tokenizer.eod}, that of "
                f"{manifest.folder} {identity.vocab_size} and {identity.eos_id}; name the tokenizer of the data with "
                "--tokenizer-type and --tokenizer-model"
            )


def _position_ids(starts: npt.NDArray[np.int64], length: int, *, reset: bool | None) -> torch.Tensor:
    positions = np.arange(length)
    if reset:
        positions -= starts[_segments(starts, positions)]
    return torch.from_numpy(positions)


def _hidden(starts: npt.NDArray[np.int64], length: int, *, reset: bool | None) -> torch.Tensor:
    """[1, s, s]: row i does not see column j."""
    positions = np.arange(length)
    hidden = positions[:, None] < positions[None, :]
    if reset:
        segments = _segments(starts, positions)
        hidden |= segments[:, None] != segments[None, :]
    return torch.from_numpy(hidden).unsqueeze(0)


def _segments(starts: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of each position's document in the window."""
    return np.searchsorted(starts, positions, side="right") - 1
