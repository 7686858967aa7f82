"""What `syne eval` can be asked for."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

Which = Literal["newest", "all"]


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    model: Annotated[Path | None, Argument(help="An HF folder, a run, or an iter_* folder.")] = None
    suite: Annotated[str, Option(help="paper, retention, probe, or a YAML file.")] = "probe"
    out: Annotated[Path | None, Option(help="Folder of results; default: <run>/eval. An HF folder needs it.")] = None
    data: Annotated[
        Path | None,
        Option(help="Folder of data sets, as DIR/<owner>/<name>/; packages are kept there."),
    ] = None
    checkpoints: Annotated[Which, Option(help="Which of a run.")] = "newest"
    only: Annotated[tuple[str, ...], Option(help="A benchmark by name; may be repeated. Default: all.")] = ()
    limit: Annotated[int | None, Option(min=1, help="Only the first items of each task.")] = None
    run_code: Annotated[
        bool, Option("--run-code", help="Run what the model writes, in the sandbox: HumanEval, MBPP.")
    ] = False
    skip_missing: Annotated[bool, Option("--skip-missing", help="Leave out what has no data.")] = False
    offline: Annotated[bool, Option("--offline", help="Ask no network.")] = False
    list_only: Annotated[bool, Option("--list", help="Print the suite and where its data lies, and stop.")] = False
    backend: Annotated[Literal["hf", "vllm"], Option(help="Which program computes.")] = "hf"
    device: Annotated[Literal["auto", "cpu", "cuda"], Option(help="auto: a GPU if there is one.")] = "auto"
    dtype: Annotated[Literal["auto", "bfloat16", "float16", "float32"], Option(help="auto: as stored.")] = "auto"
    batch_size: Annotated[int, Option(min=1, help="Prompts at a time.")] = 8

    @property
    def is_offline(self) -> bool:
        return self.offline or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
