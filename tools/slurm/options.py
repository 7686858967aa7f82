"""What the commands of `syne slurm` are asked for, field by field as on the command line.

`tools.cli_options.takes` makes a command's options of the annotated fields, so nothing heavy is imported here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from data_mixers.errors import ConfigError

Container = Literal["none", "pyxis", "apptainer"]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Machines and their time; what is not said is left to the cluster."""

    nodes: Annotated[int, Option(min=1, help="Machines.")] = 1
    min_nodes: int | None = None
    """Of a training run: goes on with as few when nodes are lost. None: waits for all of them."""
    gpus_per_node: Annotated[int, Option(min=1, help="GPUs, so ranks, of a machine; with device=cpu its ranks.")] = 8
    cpus_per_task: Annotated[int | None, Option(min=1, help="Cores of a rank; default: whole nodes, shared out.")] = (
        None
    )
    time: Annotated[str, Option(help="Wall time of one slice; a run takes as many as it needs.")] = "1-00:00:00"
    sbatch: Annotated[
        tuple[str, ...],
        Option("--sbatch", metavar="KEY=VALUE", help="More for sbatch, e.g. account=lab; may be repeated."),
    ] = ()

    @property
    def options(self) -> dict[str, str]:
        """More options of sbatch; an empty value: a flag."""
        return {name: value for name, _, value in (text.partition("=") for text in self.sbatch)}


@dataclass(frozen=True, kw_only=True)
class Environment:
    python: Annotated[str, Option(help="The interpreter on the nodes, or in the container.")] = "python"
    container: Annotated[Container, Option(help="How a rank gets its software.")] = "none"
    image: Annotated[str | None, Option(help="Of the container.")] = None
    mounts: Annotated[
        tuple[str, ...], Option("--mount", metavar="FROM:TO", help="Beside the working folder; may be repeated.")
    ] = ()
    env: Annotated[
        tuple[str, ...],
        Option("--env", metavar="KEY=VALUE", help="More variables, e.g. NCCL_SOCKET_IFNAME=ib0; may be repeated."),
    ] = ()

    @property
    def variables(self) -> dict[str, str]:
        """Errors: ConfigError for what is no KEY=VALUE."""
        if wrong := [text for text in self.env if "=" not in text]:
            raise ConfigError(f"--env {wrong[0]!r}: give KEY=VALUE")
        return {name: value for name, _, value in (text.partition("=") for text in self.env)}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a training job goes on after it has ended."""

    min_nodes: Annotated[
        int | None,
        Option(min=1, help="Go on with as few when nodes are lost, with the same global batch; default: wait for all."),
    ] = None
    retries: Annotated[int, Option(min=0, help="Restarts in a row without a new checkpoint.")] = 3
    """Before the job gives up. Ours."""
    preflight: Annotated[bool, Option(help="Check the nodes before training.")] = True
    lead: Annotated[
        int | None,
        Option(
            min=1,
            max=65535,
            help="Seconds between the signal to save and the wall time; default: 2 measured saves, a step, a "
            "validation batch.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is evaluated when a run has been trained and converted."""

    suites: Annotated[
        tuple[str, ...], Option("--eval", metavar="SUITE", help="Then evaluate it: probe, paper, ...; may be repeated.")
    ] = ()
    data: Annotated[Path | None, Option("--eval-data", help="Folder of the data sets, for --eval.")] = None
    runs_code: Annotated[
        bool, Option("--eval-run-code", help="Allow --eval to run what the model writes, in the sandbox.")
    ] = False

    def options(self) -> list[str]:
        """Of `syne eval`. Offline, as compute nodes are; a set that is not there is left out, and said to be."""
        data = [] if self.data is None else ["--data", str(self.data)]
        return ["--offline", "--skip-missing", *data, *(["--run-code"] if self.runs_code else [])]
