"""Checkpoint to an HF folder: `syne export`."""

from dataclasses import dataclass
from pathlib import Path

from megatron_synE.checkpoint.hf_export import SHARD_BYTES, DtypeChoice, Progress, write_hf_folder
from tools.checkpoint.meter import Cost, Meter


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written."""

    folder: Path
    verified: bool
    cost: Cost

    def summary(self) -> str:
        return f"{self.folder}: {'verified bit for bit' if self.verified else 'not verified'}; {self.cost.summary()}"


def export_hf(
    checkpoint: Path,
    out: Path,
    *,
    max_shard_size_bytes: int = SHARD_BYTES,
    dtype: DtypeChoice = "keep",
    verify: bool = True,
    hf_config: Path | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write `checkpoint` (an iter_* folder, or a run: its newest complete one) as an HF folder.

    hf_config: the config.json to use for a Megatron-LM checkpoint, which holds none. name: the model's, for its card.
    Errors: CheckpointError as in write_hf_folder. Cost: memory for a few blocks of 16 MiB.
    """
    meter = Meter()
    size_bytes = write_hf_folder(
        checkpoint,
        out,
        dtype=dtype,
        max_shard_size_bytes=max_shard_size_bytes,
        verify=verify,
        hf_config=hf_config,
        name=name,
        progress=progress,
    )
    return ExportReport(folder=out, verified=verify, cost=meter.cost(size_bytes=size_bytes))
