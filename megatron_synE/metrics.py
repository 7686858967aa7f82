"""What a run reports: metrics.jsonl is the truth; TensorBoard and W&B are copies; the console line is Megatron's."""

import json
import logging
import uuid
from pathlib import Path
from typing import Any

from data_mixers.errors import ConfigError
from megatron_synE.config.schema import LoggingSection
from megatron_synE.exit_codes import OneRankError

logger = logging.getLogger(__name__)


def truncate_after(metrics: Path, iteration: int) -> None:
    """Drop rows after `iteration`: a killed job may have logged steps that its checkpoint does not hold.

    A last line that was cut by the kill goes too.
    """
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["iteration"] <= iteration:
            kept.append(line if line.endswith("\n") else line + "\n")
    temporary = metrics.with_suffix(".tmp")
    try:
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(metrics)
    except OSError as error:
        raise ConfigError(f"{metrics}: cannot be written ({error.strerror}); make room") from error


class Metrics:
    """Writes rows on one rank; on the others every method does nothing."""

    def __init__(
        self,
        section: LoggingSection,
        *,
        path: Path,
        run_name: str,
        enabled: bool,
        wandb_id: str | None,
        iteration: int,
    ) -> None:
        """iteration: where the run stands; what trackers hold beyond it came from steps that were lost."""
        self.wandb_id = wandb_id if section.wandb != "off" else None
        self._stream = self._tensorboard = self._wandb = None
        if not enabled:
            return
        self._path = path
        self._stream = path.open("a", encoding="utf-8")
        if section.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(path.parent / "tensorboard"), purge_step=iteration + 1)
        if section.wandb != "off":
            import wandb

            self.wandb_id = wandb_id or uuid.uuid4().hex[:12]
            try:
                self._wandb = wandb.init(
                    project=section.wandb_project,
                    name=run_name,
                    id=self.wandb_id,
                    resume="allow",
                    mode=section.wandb,
                    dir=str(path.parent),
                )
            except (wandb.Error, OSError) as error:
                raise OneRankError(
                    ConfigError(
                        f"logging.wandb: {section.wandb}, but wandb does not start: {error}; mend it, or use off"
                    )
                ) from error

    def row(self, kind: str, iteration: int, **values: Any) -> None:
        """One line of metrics.jsonl, flushed; numbers also go to the trackers as `<kind>/<name>`."""
        if self._stream is None:
            return
        try:
            self._stream.write(json.dumps({"kind": kind, "iteration": iteration, **values}) + "\n")
            self._stream.flush()
        except OSError as error:
            raise OneRankError(
                ConfigError(f"{self._path}: cannot be written ({error.strerror}); make room, and start again to resume")
            ) from error
        prefix = f"{kind}/{values['set']}" if "set" in values else kind
        numbers = {f"{prefix}/{k}": v for k, v in values.items() if isinstance(v, int | float)}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, iteration)
        if self._wandb is not None:
            self._wandb.log(numbers, step=iteration)

    def close(self) -> None:
        """Flush and close everything."""
        if self._stream is not None:
            self._stream.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def console_line(
    *,
    iteration: int,
    train_iters: int,
    consumed_samples: int,
    step_seconds: float,
    tflops_per_device: float,
    mfu: float | None,
    tokens_per_second: float,
    learning_rate: float,
    global_batch_size: int,
    lm_loss: float,
    grad_norm: float,
) -> str:
    """Megatron-LM's training line, with the same separators and names, so that existing parsers go on working."""
    utilisation = "" if mfu is None else f" MFU: {100 * mfu:.1f}% |"
    return (
        f" iteration {iteration:8d}/{train_iters:8d} | consumed samples: {consumed_samples:12d} |"
        f" elapsed time per iteration (ms): {step_seconds * 1000:.1f} |"
        f" throughput per GPU (TFLOP/s/GPU): {tflops_per_device:.2f} |{utilisation}"
        f" tokens per second: {tokens_per_second:.1f} |"
        f" learning rate: {learning_rate:.6E} | global batch size: {global_batch_size:5d} |"
        f" lm loss: {lm_loss:.6E} | grad norm: {grad_norm:.3f} |"
    )
