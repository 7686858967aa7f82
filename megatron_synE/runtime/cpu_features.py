"""What the CPU can do, read from /proc/cpuinfo. No torch."""

from pathlib import Path

_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
# arm64 spells them in one line too ("Features"); bf16 there is the BFDOT/BFMMLA extension.
_ARM_BF16_FLAGS = {"bf16"}


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The feature flags of the first core; empty where the file is missing or says none."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(values.split())
    return frozenset()


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether bf16 products run in hardware. Without it bf16 is emulated and slower than fp32."""
    return bool(cpu_flags(cpuinfo) & (_BF16_FLAGS | _ARM_BF16_FLAGS))
