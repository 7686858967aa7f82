"""What a run reports: metrics.jsonl is the truth; TensorBoard and W&B are copies."""

import json
import uuid
from pathlib import Path
from typing import Any, TextIO

from data_mixers.errors import ConfigError, UserError
from megatron_synE.config.schema import LoggingSection
from megatron_synE.exit_codes import OneRankError
from megatron_synE.runtime.lease import Lease, write_text

OF_VALIDATION = frozenset({"validation", "validation_time", "observation", "reweight", "topic_share", "guard"})
"""Kinds of rows that a validation, and what is decided on it, writes."""


def truncate_after(metrics: Path, iteration: int, lease: Lease, *, validated: int | None) -> None:
    """Drop rows after `iteration`: a killed job may have logged steps that its checkpoint does not hold.

    validated: the last iteration whose validation the checkpoint holds; later ones will be done again, `iteration`'s
    own too where a stop came before it.
    A last line that was cut by the kill goes too. The file is a new one: what an earlier writer still has open is not.
    """
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        last = iteration if row["kind"] not in OF_VALIDATION else -1 if validated is None else validated
        if row["iteration"] <= last:
            kept.append(line if line.endswith("\n") else line + "\n")
    try:
        write_text(metrics, "".join(kept), token=lease.token, lease=lease)
    except OSError as error:
        raise ConfigError(f"{metrics}: cannot be written ({error.strerror}); make room") from error


def last_row(metrics: Path, kind: str) -> dict[str, Any] | None:
    """The last row of a kind, if there is one. Call it after truncate_after: a line cut by a kill is refused."""
    found: dict[str, Any] | None = None
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else ():
        row = json.loads(line)
        found = row if row["kind"] == kind else found
    return found


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
        lease: Lease | None = None,
    ) -> None:
        """iteration: where the run stands; what trackers hold beyond it came from steps that were lost.

        lease: checked before every row.
        """
        self.wandb_id = wandb_id if section.wandb != "off" else None
        self._stream: TextIO | None = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        self._wandb_step = 0
        self._again = range(0)
        """Iterations done again that W&B holds already; not its last one, of which it may lack rows."""
        if not enabled:
            return
        self._path, self._lease, self._section = path, lease, section
        self._open(iteration)
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
                # Behind the last step that it holds; 0 in a new run and offline.
                self._wandb_step = int(self._wandb.starting_step)
                self._again = range(iteration + 1, self._wandb_step - 1)
            except (wandb.Error, OSError) as error:
                raise OneRankError(
                    ConfigError(
                        f"logging.wandb: {section.wandb}, but wandb does not start: {error}; mend it, or use off"
                    )
                ) from error

    def _open(self, iteration: int) -> None:
        self._stream = self._path.open("a", encoding="utf-8")
        if self._section.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self._path.parent / "tensorboard"), purge_step=iteration + 1)

    def go_back_to(self, iteration: int, *, validated: int | None) -> None:
        """Drop what was reported after `iteration`, as truncate_after does; W&B cannot, and keeps its own."""
        if self._stream is None:
            return
        self._stream.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        assert self._lease is not None
        truncate_after(self._path, iteration, self._lease, validated=validated)
        self._open(iteration)
        self._again = range(iteration + 1, self._wandb_step)

    def row(self, kind: str, iteration: int, **values: Any) -> None:
        """One line of metrics.jsonl, flushed; numbers also go to the trackers as `<kind>/<name>`."""
        if self._stream is None:
            return
        try:
            if self._lease is not None:
                self._lease.check()
            self._stream.write(json.dumps({"kind": kind, "iteration": iteration, **values}) + "\n")
            self._stream.flush()
        except UserError as error:
            raise OneRankError(error) from error
        except OSError as error:
            raise OneRankError(
                ConfigError(f"{self._path}: cannot be written ({error.strerror}); make room, and start again to resume")
            ) from error
        prefix = f"{kind}/{values['set']}" if "set" in values else kind
        numbers = {f"{prefix}/{k}": v for k, v in values.items() if isinstance(v, int | float)}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, iteration)
        if self._wandb is not None and iteration not in self._again:
            # It drops what lies before its last step: a save in the background ends behind later ones.
            self._wandb_step = max(self._wandb_step, iteration)
            self._wandb.log(numbers, step=self._wandb_step)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
