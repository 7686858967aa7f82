"""What a measurement found: the table, the winning run.yaml, and the efficiency table corrected by it.

python -m tools.planner.measurement FOLDER         (the last line of measure.sbatch)
"""

import json
import sys
from pathlib import Path
from typing import Any

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from data_mixers.file_version import check_version
from megatron_synE.config.load import dump_yaml
from tools.cli_options import one_message
from tools.planner.figures import TABLE_VERSION
from tools.planner.measure import CANDIDATES, SCHEMA_VERSION
from tools.planner.report import GB, columns

RUN, TABLE, RESULTS = "run.yaml", "efficiency.yaml", "results.json"


def collect(folder: Path) -> str:
    """Read every candidate's result, write run.yaml, efficiency.yaml and results.json; gives the table.

    Errors: DataError if no candidate finished (nothing is written then).
    """
    plan = _read(folder / CANDIDATES)
    cure = "write the folder again with `syne plan --measure`"
    check_version(plan, understood=SCHEMA_VERSION, file=folder / CANDIDATES, cure=cure, fault=ConfigError)
    rows = [_row(folder, number, candidate) for number, candidate in enumerate(plan["candidates"], 1)]
    finished = [row for row in rows if row["result"] is not None]
    if not finished:
        raise DataError(f"{folder}: none of {len(rows)} candidates finished; read {folder}/candidate-1.log")
    best = max(finished, key=lambda row: row["result"]["tokens_per_second_per_gpu"])
    write_atomic(folder / RUN, dump_yaml(_with_overrides(plan["run"], best["overrides"])).encode())
    table = {"schema_version": TABLE_VERSION, "measured": [_entry(plan, row) for row in finished]}
    write_atomic(folder / TABLE, dump_yaml(table).encode())
    results = {"schema_version": SCHEMA_VERSION, "candidates": rows}
    write_atomic(folder / RESULTS, (json.dumps(results, indent=1) + "\n").encode())
    return (
        "\n".join(columns(_table(rows)))
        + f"\nfastest: {best['layout']}; {folder / RUN} is the run with it\n"
        + f"{folder / TABLE}: give it to `syne plan --efficiency` and the plan uses these rates"
    )


def _row(folder: Path, number: int, candidate: dict[str, Any]) -> dict[str, Any]:
    name = f"candidate-{number}"
    result, code = folder / f"{name}.result.json", folder / f"{name}.code"
    return {
        "name": name,
        "layout": candidate["layout"],
        "overrides": candidate["overrides"],
        "expected": candidate["speed"]["tokens_per_second_per_gpu"],
        "memory_bytes": candidate["memory_bytes_per_gpu"]["total"],
        "result": _read(result) if result.exists() else None,
        "exit_code": int(code.read_text()) if code.exists() else None,
        "last_words": _last_words(folder / f"{name}.log"),
    }


def _last_words(log: Path) -> str:
    """The line that says why a candidate failed, else the last one."""
    if not log.exists():
        return "not started"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line or "memory" in line]
    return (telling or lines or ["says nothing"])[-1][:200]


def _table(rows: list[dict[str, Any]]) -> list[list[str]]:
    table = [["candidate", "tok/s/GPU measured", "expected", "peak GB measured", "GB computed", "layout"]]
    for row in rows:
        result = row["result"]
        if result is None:
            shown = ["-", f"{row['expected']:,.0f}", "-", f"{row['memory_bytes'] / GB:.1f}"]
            table.append([row["name"], *shown, f"{row['layout']}: failed ({row['exit_code']}): {row['last_words']}"])
        else:
            # On a CPU the peak is the whole process, which the formula does not mean.
            peak = f"{result['peak_memory_bytes'] / GB:.1f}" if result["device"] == "cuda" else "-"
            shown = [f"{result['tokens_per_second_per_gpu']:,.0f}", f"{row['expected']:,.0f}", peak]
            table.append([row["name"], *shown, f"{row['memory_bytes'] / GB:.1f}", row["layout"]])
    return table


def _entry(plan: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    result = row["result"]
    return {
        "card": plan["card"] if result["device"] == "cuda" else "cpu",
        "num_parameters": plan["num_parameters"],
        "seq_length": plan["seq_length"],
        "global_batch_size": plan["run"]["training"]["global_batch_size"],
        "gpus": result["world_size"],
        "layout": row["layout"],
        "tokens_per_second_per_gpu": round(result["tokens_per_second_per_gpu"], 2),
    }


def _with_overrides(run: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The run's plain values with section.key=value set; values are numbers, booleans, null or names."""
    tree: dict[str, Any] = json.loads(json.dumps(run))
    for text in overrides:
        key, _, value = text.partition("=")
        section, name = key.split(".")
        tree[section][name] = value if value.isalpha() and value not in ("true", "false", "null") else json.loads(value)
    return tree


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; give a folder made by `syne plan --measure`") from error
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tools.planner.measurement FOLDER")
    with one_message():
        sys.stdout.write(collect(Path(sys.argv[1])) + "\n")
