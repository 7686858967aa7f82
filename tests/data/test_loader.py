"""The order of the data through the real DataLoader: the same for any number of workers and any layout."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from data_mixers.errors import DataError
from data_mixers.manifest import read_manifest
from megatron_synE.config.derive import derive
from megatron_synE.config.examine import examine
from megatron_synE.config.load import load_config
from megatron_synE.data.loader import micro_batches_of_samples
from megatron_synE.data.scheduled_dataset import ScheduledDataset
from megatron_synE.exit_codes import OneRankError
from tests import tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.prepared(tmp_path_factory.mktemp("loader"))


def read(config: Path, *overrides: str, world_size: int = 1, consumed_samples: int = 0) -> list[list[list[list[int]]]]:
    """rank -> micro-batch -> sample -> tokens."""
    resolved = load_config(config, overrides).resolved
    examination = examine(resolved, world_size=world_size)
    assert examination.faults == () and examination.architecture is not None and examination.schedule is not None
    plan = derive(resolved, examination.architecture, world_size, device="cpu")
    dataset = ScheduledDataset(examination.schedule, examination.manifests)
    return [
        [
            [sample.tokens.tolist() for sample in samples]
            for samples in micro_batches_of_samples(
                dataset, resolved, plan, consumed_samples=consumed_samples, data_parallel_rank=rank
            )
        ]
        for rank in range(world_size)
    ]


def in_order(ranks: list[list[list[list[int]]]]) -> list[list[int]]:
    return [sample for together in zip(*ranks, strict=True) for micro_batch in together for sample in micro_batch]


@pytest.fixture(scope="module")
def straight(config: Path) -> list[list[int]]:
    found = in_order(read(config))
    assert len(found) == 40 and len(set(map(tuple, found))) == 40
    return found


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
def test_the_order_does_not_depend_on_the_number_of_workers(
    config: Path, straight: list[list[int]], num_workers: int
) -> None:
    assert in_order(read(config, f"data.num_workers={num_workers}")) == straight


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(2, 1), (2, 2), (4, 2), (1, 8)])
def test_the_order_does_not_depend_on_the_layout(
    config: Path, straight: list[list[int]], world_size: int, micro_batch_size: int
) -> None:
    found = read(config, f"training.micro_batch_size={micro_batch_size}", "data.num_workers=1", world_size=world_size)
    assert in_order(found) == straight


def test_readers_outlive_a_signal_to_the_process_group(config: Path) -> None:
    """Slurm and `timeout` signal whole groups; the rank alone decides what a signal means."""
    script = """
import os, signal, sys
from pathlib import Path
from tests.data.test_loader import read
os.setpgrp()
signal.signal(signal.SIGTERM, lambda *_: None)
import megatron_synE.data.loader as loader
shipped = loader._raised
def signalled(batches):
    for number, batch in enumerate(shipped(batches)):
        if number == 1:
            os.killpg(0, signal.SIGTERM)
        yield batch
loader._raised = signalled
print(sum(len(batch) for batch in read(Path(sys.argv[1]), "data.num_workers=2")[0]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(config)], cwd=tiny.ROOT, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.stdout == "40\n", done.stderr[-3000:]


def test_going_on_gives_the_rest(config: Path, straight: list[list[int]]) -> None:
    assert in_order(read(config, "data.num_workers=1", world_size=2, consumed_samples=16)) == straight[16:]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_fault_in_a_file_comes_out_as_its_message_and_not_as_a_traceback(config: Path, num_workers: int) -> None:
    resolved = load_config(config, [f"data.num_workers={num_workers}"]).resolved
    examination = examine(resolved, world_size=1)
    assert examination.architecture is not None and examination.schedule is not None
    plan = derive(resolved, examination.architecture, 1, device="cpu")
    manifest = read_manifest(config.parent / "train")
    small = dataclasses.replace(manifest, tokenizer=dataclasses.replace(manifest.tokenizer, vocab_size=200))
    batches = micro_batches_of_samples(
        ScheduledDataset(examination.schedule, [small]), resolved, plan, consumed_samples=0, data_parallel_rank=0
    )
    with pytest.raises(
        OneRankError, match=r"\.bin: token id 2\d\d at token \d+ is outside the vocabulary of 200"
    ) as found:
        list(batches)
    assert "Traceback" not in str(found.value)
    assert found.value.exit_code == DataError.exit_code
