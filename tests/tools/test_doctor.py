"""What the doctor says of a sound machine, and of each thing that can be wrong with one."""

from pathlib import Path

import pytest

import tools
from data_mixers.errors import ConfigError
from megatron_synE.runtime.cpu_features import cpu_flags, cpu_has_bf16
from tools import doctor
from tools.doctor import ownership_finding, pair_finding, try_collective

OURS = Path(tools.__file__).resolve().parent


def test_a_collective_that_does_not_answer_is_a_fault(tmp_path: Path) -> None:
    finding = try_collective(tmp_path / "store", timeout_seconds=0.01)
    assert finding.state == "fault"
    assert "within 0.01 s" in finding.text


def test_a_collective_that_fails_says_why(tmp_path: Path) -> None:
    finding = try_collective(tmp_path, timeout_seconds=30)  # a folder cannot be the file of a store
    assert finding.state == "fault"
    assert "all_reduce failed: " in finding.text


@pytest.mark.parametrize(
    ("python", "mcore", "state"),
    [("3.11", "0.16.1", "ok"), ("3.12", "0.19.2", "ok"), ("3.12", "0.16.1", "ok"), ("3.13", "0.16.1", "note")],
)
def test_supported_pairs(python: str, mcore: str, state: str) -> None:
    assert pair_finding(python, mcore).state == state


def test_a_foreign_tools_package_is_a_fault(tmp_path: Path) -> None:
    assert ownership_finding(OURS, tmp_path).state == "ok"
    assert ownership_finding(tmp_path, tmp_path).state == "fault"


def test_a_tools_folder_in_the_working_folder_is_noted(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    finding = ownership_finding(OURS, tmp_path)
    assert finding.state == "note"
    assert str(tmp_path / "tools") in finding.text


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("flags : fpu amx_bf16\n", True),
        ("Features : fp asimd bf16\n", True),
        ("flags : fpu avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_bf16_is_read_from_the_flags(tmp_path: Path, cpuinfo: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    assert cpu_has_bf16(tmp_path / "cpuinfo") is expected


def test_without_cpuinfo_nothing_is_claimed(tmp_path: Path) -> None:
    assert cpu_flags(tmp_path / "nowhere") == frozenset()


def test_what_the_layers_cannot_use_is_a_fault_beside_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(*_: object) -> None:
        raise ConfigError("flash-attn 2 is installed and cannot be imported")

    monkeypatch.setattr("megatron_synE.model.layer_spec.choose", choose)
    found = {finding.subject: finding for finding in doctor._implementations()}
    assert (found["layers"].state, found["layers"].text[:12]) == ("fault", "flash-attn 2")
    assert found.keys() == {"layers", "optimizer", "tokenizer"}
