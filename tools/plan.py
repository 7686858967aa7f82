"""What a run would be: as written, as resolved, as derived, and everything that is wrong with it."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_mixers.sampling import Sampler
from megatron_synE.config.derive import Device, RunPlan
from megatron_synE.config.examine import Examination, examine
from megatron_synE.config.fault import require
from megatron_synE.config.load import LoadedConfig, Tree, dump_yaml, load_config, resolved_tree
from tools.planner.options import PlanOptions


def print_plan(path: Path, overrides: Sequence[str], options: PlanOptions, *, nodes: int) -> None:
    """Print the plan of the run in `path` on so many nodes, or with options.nproc on this machine.

    Errors: ConfigError with every fault, after the plan is printed.
    """
    world_size = options.nproc or nodes * (options.gpus_per_node or 8)
    device: Device | None = None if options.nproc else "cuda"  # of device=auto, there; None: what this machine has
    loaded = load_config(path, overrides)
    if loaded.resolved.device != "auto":
        device = loaded.resolved.device
    examination = examine(loaded.resolved, world_size=world_size, device=device, reads_data=options.reads_data)
    render = _as_json if options.output_format == "json" else _as_text
    sys.stdout.write(render(loaded, examination))
    sys.stdout.flush()
    sys.stderr.writelines(f"caution: {line}\n" for line in examination.cautions)
    require(examination.faults, where=str(path))


def derived_tree(plan: RunPlan) -> Tree:
    tree: Tree = json.loads(json.dumps(dataclasses.asdict(plan)))
    return tree


def _as_text(loaded: LoadedConfig, examination: Examination) -> str:
    blocks = [
        ("as written (file and command line)", dump_yaml(loaded.user)),
        ("resolved (with preset and defaults)", dump_yaml(resolved_tree(loaded.resolved))),
    ]
    if examination.plan is not None:
        blocks.append(("derived", _readable(examination.plan)))
    if examination.schedule is not None:
        epochs = {name: round(value, 4) for name, value in Sampler(examination.schedule).epochs_read().items()}
        blocks.append(("how often each source is read, in epochs", dump_yaml(epochs)))
    return "\n".join(f"# --- {title}\n{text}" for title, text in blocks)


def _readable(plan: RunPlan) -> str:
    tree = derived_tree(plan)
    tree["num_parameters"] = f"{plan.num_parameters} ({plan.num_parameters / 1e9:.3g} B)"
    tree["tokens_per_iteration"] = f"{plan.tokens_per_iteration} ({plan.tokens_per_iteration / 1e6:.3g} M)"
    tree["total_tokens"] = f"{plan.total_tokens} ({plan.total_tokens / 1e9:.4g} B)"
    return dump_yaml(tree)


def _as_json(loaded: LoadedConfig, examination: Examination) -> str:
    report: dict[str, Any] = {
        "user": loaded.user,
        "resolved": resolved_tree(loaded.resolved),
        "derived": None if examination.plan is None else derived_tree(examination.plan),
        "epochs": None if examination.schedule is None else Sampler(examination.schedule).epochs_read(),
        "faults": [dataclasses.asdict(fault) for fault in examination.faults],
    }
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"
