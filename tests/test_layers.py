"""What may stand where: torch.cuda, Transformer Engine, torch itself, upward imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_mixers", "megatron_synE", "tools")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAY_SAY_CUDA = ("megatron_synE/runtime/", "megatron_synE/kernels/")
MAY_IMPORT_TRANSFORMER_ENGINE = ("megatron_synE/model/layer_spec.py",)
IDS = [str(path.relative_to(ROOT)) for path in MODULES]


def mentions_cuda(tree: ast.AST) -> list[int]:
    """Lines that use torch.cuda, call .cuda(), or name the device "cuda" in a torch call."""
    lines = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr="cuda"):
                lines.append(node.lineno)
            case ast.ImportFrom(module=str(module)) if module.startswith("torch.cuda"):
                lines.append(node.lineno)
            case ast.Import(names=names) if any(name.name.startswith("torch.cuda") for name in names):
                lines.append(node.lineno)
            case ast.Call(func=ast.Attribute(attr="cuda")):
                lines.append(node.lineno)
            case ast.keyword(arg="device", value=ast.Constant(value=str(text))) if text.startswith("cuda"):
                lines.append(node.lineno)
    return lines


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_cuda_is_named_only_in_runtime_and_kernels(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    if not name.startswith(MAY_SAY_CUDA):
        assert mentions_cuda(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_transformer_engine_is_imported_only_where_the_layer_spec_is_chosen(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    if name not in MAY_IMPORT_TRANSFORMER_ENGINE:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert [module for module in imported(tree) if module.partition(".")[0] == "transformer_engine"] == []


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_every_module_begins_with_its_idea_and_stays_below_400_lines(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 400


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("torch.cuda.synchronize()", [1]),
        ("x.cuda()", [1]),
        ("import torch.cuda", [1]),
        ("from torch.cuda import amp", [1]),
        ("torch.zeros(1, device='cuda:0')", [1]),
        ("kind = 'cuda'", []),
    ],
)
def test_the_cuda_finder_finds(code: str, lines: list[int]) -> None:
    assert mentions_cuda(ast.parse(code)) == lines


@pytest.mark.parametrize("module", ["megatron_synE", "megatron_synE.config.examine", "tools.cli", "data_mixers"])
def test_importing_brings_no_torch(module: str) -> None:
    program = f"import {module}, sys; sys.exit('torch' in sys.modules or 'megatron.core' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
