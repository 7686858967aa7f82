"""`syne train` with a clock: seconds of each part from the start of the command to the end of the first step.

argv = when the command was started (time.monotonic), where rank 0 writes the parts, then the command's own arguments;
the ranks that it starts are started as this module again. Where one part interrupts another, as the first import of a
module does, the time is the inner one's.

Nothing heavy may be imported at the top: it would be counted as Python's own start.
"""

import builtins
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PARTS = {
    # Module, and name as the command looks it up -> the part that its time is counted to.
    ("megatron_synE.train", "load_config"): "configuration and data",
    ("megatron_synE.train", "examine"): "configuration and data",
    ("megatron_synE.assemble", "ScheduledDataset"): "configuration and data",
    ("megatron_synE.runtime.distributed", "initialize"): "process groups",
    ("megatron_synE.assemble", "build_model"): "model",
    ("megatron_synE.assemble", "_load_weights"): "weights",
    ("megatron_synE.assemble", "load_training_state"): "weights",
    ("megatron_synE.assemble", "build_optimizer"): "optimizer",
    ("megatron_synE.train", "run_rank"): "other",
}


class Clock:
    """Every second since `started` belongs to one part."""

    def __init__(self, started: float, part: str) -> None:
        self.seconds: dict[str, float] = {}
        self._inside, self._since = [part], started

    def enter(self, part: str) -> None:
        """What follows is of this part."""
        self._count()
        self._inside.append(part)

    def leave(self) -> None:
        """Back to the part before."""
        self._count()
        self._inside.pop()

    def _count(self) -> None:
        now, part = time.monotonic(), self._inside[-1]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted to `part`."""

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            self.enter(part)
            try:
                return function(*arguments, **named)
            finally:
                self.leave()

        return call


def watch_imports(clock: Clock, seen: Callable[[str, Any], None]) -> None:
    """Count the time of all imports; `seen` hears of each module of ours before anything is taken from it."""
    original, depth, known = builtins.__import__, 0, set[str]()

    @functools.wraps(original)
    def watched(*arguments: Any, **named: Any) -> Any:
        nonlocal depth
        if depth:
            return original(*arguments, **named)
        depth += 1
        clock.enter("imports")
        try:
            module = original(*arguments, **named)
            for name in {name for name in sys.modules if name.startswith("megatron_synE.")} - known:
                known.add(name)
                seen(name, sys.modules[name])
            return module
        finally:
            clock.leave()
            depth -= 1

    builtins.__import__ = watched


def main(started: float, out: Path, arguments: Sequence[str]) -> None:
    """Live as the command, or as one of its ranks."""
    is_rank = "RANK" in os.environ
    clock = Clock(started, "the command, before its ranks" if is_rank else "python")
    clock.enter("other")
    again = ["-m", "benchmarks._startup_run", str(started), str(out)]

    def seen(name: str, module: Any) -> None:
        for (owner, function), part in PARTS.items():
            if owner == name:
                setattr(module, function, clock.timed(part, getattr(module, function)))
        if name == "megatron_synE.train":
            launch = module.launch
            module.launch = lambda command, nproc: launch([*again, *command[2:]], nproc)
        if name == "megatron_synE.trainer":
            module.Trainer.iterate = _first(clock, out, module.Trainer.iterate)

    watch_imports(clock, seen)
    if is_rank:
        from megatron_synE.train import end_as_one_rank

        end_as_one_rank(Path(arguments[0]), arguments[1:])
    from tools.cli import main as syne

    sys.exit(syne(list(arguments)))


def _first(clock: Clock, out: Path, iterate: Callable[..., Any]) -> Callable[..., Any]:
    step = clock.timed("first step", iterate)

    def first(*arguments: Any) -> Any:
        decision = step(*arguments)
        if os.environ.get("RANK", "0") == "0" and not out.exists():
            out.write_text(json.dumps(clock.seconds))
        return decision

    return first


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
