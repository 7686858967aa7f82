"""Compiles every Triton kernel at Llama-3-8B's shape for cards that are not here.

Prints of each binary its size, the lines that spill registers, and those that compute with a row's number in 32 bits,
which cannot number the elements of 74,899 rows of 8B's gate and up.

In a process of its own: compiled and interpreted functions do not live in one.
"""

import inspect
import json
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megatron_synE.kernels import rms_norm, rope, swiglu

ROW, BLOCK = {"BLOCK": 4096, "DTYPE": tl.float32}, {"BLOCK": swiglu.COLUMNS, "DTYPE": tl.float32}
HEADS = {"HEADS": 32, "HALF": 64, "DTYPE": tl.float32}
FP32 = ("inverse", "partial")
KERNELS = {
    "rms_norm forward": (rms_norm._forward, ROW, 8),
    "rms_norm backward": (rms_norm._backward, ROW, 8),
    "swiglu forward": (swiglu._forward, BLOCK, 4),
    "swiglu backward": (swiglu._backward, BLOCK, 4),
    "rotate": (rope._turn, HEADS, 4),
}
INTEGERS = ("x_stride", "n", "h", "f", "per_program", "token_stride", "head_stride", "heads", "half")
FLOATS = ("eps", "sign")


def type_of(name: str, constants: dict[str, object]) -> str:
    if name in constants:
        return "constexpr"
    if name in INTEGERS:
        return "i32"
    if name in FLOATS:
        return "fp32"
    return "*fp32" if name in FP32 else "*bf16"


def narrow_uses(code: str) -> int:
    """Uses of the first program number, which is a row's or counts rows, other than widening it to 64 bits."""
    (name,) = re.findall(r"(%\S+) = tt.get_program_id x", code)
    uses = [line for line in code.splitlines() if re.search(re.escape(name) + r"(?![\w#])", line)]
    return sum("tt.get_program_id" not in line and "arith.extsi" not in line for line in uses)


sizes = {}
for capability in (80, 90):
    for title, (kernel, constants, warps) in KERNELS.items():
        names = list(inspect.signature(kernel.fn).parameters)
        signature = {name: type_of(name, constants) for name in names}
        values = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        spills = sum(".local" in line for line in made.asm["ptx"].splitlines())
        sizes[f"{title}, sm_{capability}"] = [len(made.asm["cubin"]), spills, narrow_uses(made.asm["ttir"])]
print(json.dumps(sizes))
