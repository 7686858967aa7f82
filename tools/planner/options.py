"""What `syne plan` is asked for besides the run, field by field as on the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Option


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    nodes: Annotated[str, Option(help="Machines: 16, 1,2,4 or (with the planner) 1..64.")] = "1"
    gpus_per_node: Annotated[int | None, Option(min=1, help="Of a machine; default: 8.")] = None
    nproc: Annotated[int | None, Option(min=1, help="Processes on one machine, in place of nodes and GPUs.")] = None
    reads_data: Annotated[bool, Option("--data/--no-data", help="Read the manifests.")] = True
    output_format: Annotated[Literal["text", "json"], Option("--format")] = "text"
    card: Annotated[str | None, Option(help="h100, h200 or a100: memory, speed and cost of every layout there.")] = None
    shows_all: Annotated[bool, Option("--all", help="List every layout and every refusal.")] = False
    pipeline: Annotated[
        bool, Option("--pipeline", help="Also GPU-hours and disk of labelling, scoring, synthesis, evaluation.")
    ] = False
    rates: Annotated[Path | None, Option(help="YAML file of your measured rates for --pipeline.")] = None
    measure: Annotated[
        Path | None,
        Option(help="Folder to write: one sbatch that tries the best six for 20 steps."),
    ] = None
    efficiency: Annotated[Path | None, Option(help="Your efficiency table, merged over the shipped one.")] = None
    reserve_gib: Annotated[float, Option(min=0.0, help="GPU memory held back, in GiB.")] = 4.0
    save_gb_per_second: Annotated[float, Option(min=0.001, help="Write rate of the checkpoint's disk.")] = 1.0
