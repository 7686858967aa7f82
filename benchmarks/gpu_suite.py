"""Everything that is to be known about one card: numerics first, then kernels, layers, whole steps, scoring, saving.

Each section is a process of its own with a limit below ten minutes, so one that hangs or runs out of memory costs its
own figures alone; the results file is written anew after each. No network, no files but the results.

python -m benchmarks.gpu_suite --out results.json [--sections numerics,kernels] [--tiny --device cpu]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._gpu_sections import SECTIONS, Setting
from data_mixers.atomic import write_atomic
from megatron_synE.config.derive import resolve_device
from tools.doctor import installed_version

LIMIT_SECONDS = 570.0
PACKAGES = ("torch", "triton", "megatron-core", "flash-attn", "transformer-engine")


def facts(device_name: str) -> dict[str, Any]:
    import torch

    return {
        "device": device_name,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "versions": {name: installed_version(name) for name in PACKAGES},
    }


def _driver() -> str | None:
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def in_own_process(name: str, setting: Setting, limit: float) -> dict[str, Any]:
    """The section's figures, or why there are none."""
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--one", name, "--device", setting.device_kind]
    command += ["--tiny"] if setting.tiny else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as late:
        said = late.stderr or b""  # bytes, also with text=True
        return {"status": "timed out", "limit_seconds": limit, "stderr": said.decode(errors="replace")[-4000:]}
    said = {"stderr": done.stderr[-4000:]}  # also of a section that is done: what fell back to something slower
    try:
        figures = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        figures = None
    if done.returncode or figures is None:
        return {"status": "failed", "exit_code": done.returncode, **said}
    return {"status": "done", "figures": figures, **said}


def in_this_process(name: str, setting: Setting, _: float) -> dict[str, Any]:
    """For the dry run on a CPU: an import costs more than a section there."""
    return {"status": "done", "figures": SECTIONS[name](setting)}


def suite(
    names: Sequence[str], setting: Setting, out: Path, *, limit: float, run: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """Run the sections in order; `out` is whole after each. A section whose numerics failed ends the suite."""
    result: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.gpu_suite", *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "tiny": setting.tiny,
        **facts(setting.device.name),
        "sections": {},
    }
    for name in names:
        started = time.monotonic()
        found = run(name, setting, min(limit, LIMIT_SECONDS))
        result["sections"][name] = {**found, "seconds": round(time.monotonic() - started, 2)}
        write_atomic(out, (json.dumps(result, indent=1) + "\n").encode())
        print(f"{name}: {found['status']} in {result['sections'][name]['seconds']} s", file=sys.stderr, flush=True)
        if name == "numerics" and found.get("figures", {}).get("failed"):
            print(f"numerics failed: {found['figures']['failed']}; no figure is worth taking", file=sys.stderr)
            break
    return result


def main() -> int:
    """0: every section is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_suite.json"))
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--limit-seconds", type=float, default=LIMIT_SECONDS)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--tiny", action="store_true", help="shapes of nothing: does the suite run whole?")
    parser.add_argument("--in-process", action="store_true", help="no process for each section, and no limits")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if options.device == "auto" and resolve_device("auto") == "cpu":
        print("no GPU here, so no figures; --tiny --device cpu --in-process shows that the suite runs", file=sys.stderr)
        return 0
    setting = Setting("cpu" if options.device == "cpu" else "cuda", tiny=options.tiny)
    if options.one:
        print(json.dumps(SECTIONS[options.one](setting)), flush=True)
        os._exit(0)  # the figures are there: nothing waits for NCCL's threads
    names = options.sections.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]}; there are {', '.join(SECTIONS)}")
    run = in_this_process if options.in_process else in_own_process
    result = suite(names, setting, options.out, limit=options.limit_seconds, run=run)
    return int(any(section["status"] != "done" for section in result["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
