"""What a card would refuse or take otherwise, without one: torch's own checks stand in."""

import os
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_synE import train, validation
from megatron_synE.config.load import load_config
from megatron_synE.data.packing import pack
from megatron_synE.model.context_part import ContextPart
from megatron_synE.runtime import device as devices
from megatron_synE.runtime.environment import Ranks
from megatron_synE.validation import Validator
from tests import tiny
from tools import cli

CARD = torch.device("meta")
"""Another device than the host's."""


def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
    """As torch's (aten/src/ATen/native/Memory.cpp), which a build for a CPU does not have."""
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin {tensor.device.type!r}, only dense CPU tensors can be pinned")
    return tensor


@pytest.mark.parametrize("part", [ContextPart(), ContextPart(1, 2)])
def test_a_held_out_micro_batch_is_made_on_the_host_and_then_sent(
    part: ContextPart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(validation, "context_part", lambda: part)
    rows = pack([np.arange(7), np.arange(5)], seq_length=16)
    owners, batch = Validator((), tuple(rows), 16, 1, CARD)._micro_batch(rows)
    sent = [owners, batch.input_ids, batch.labels, batch.loss_mask, batch.row.positions]
    assert {tensor.device.type for tensor in sent} == {"meta"}
    assert {tensor.numel() for tensor in sent} == {16 // part.size}


def test_fp32_is_fp32_whatever_the_container_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in {"is_available": True, "device_count": 1, "get_device_name": "NVIDIA H100 80GB HBM3"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")  # what TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 begins with
        assert devices.select("auto", local_rank=0).is_cuda
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("tensor_parallel", "queues"), [(1, None), (2, "1")])
def test_kernels_keep_their_order_under_tensor_parallelism_alone(
    tensor_parallel: int, queues: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the ranks were started: candidates of `syne plan --measure` run as the job that trains will."""
    config = tiny.prepared(tmp_path, parallel={"tensor_model_parallel_size": tensor_parallel})

    class Reached(Exception):
        pass

    def select(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr(devices, "select", select)
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "x")  # so that what is set here is undone
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    with pytest.raises(Reached):
        train.build_trainer(load_config(config), config, Ranks(0, 2, 0))
    assert os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == queues


@pytest.mark.parametrize(("major", "has_bf16"), [(7, False), (8, True)])
def test_a_card_that_emulates_bf16_has_none(major: int, has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a V100 or T4 `syne data score-ppl` took bf16, for which no attention kernel is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    assert devices.Device("cuda", torch.device("cuda", 0), "nccl", "a card").has_bf16 is has_bf16


@pytest.mark.parametrize("command", ["syne train", "python -m megatron_synE.train"])
def test_a_card_without_room_is_followed_by_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """On the one card of a machine too, where the command itself is the rank."""
    config = tiny.prepared(tmp_path)

    def build_trainer(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(train, "build_trainer", build_trainer)
    monkeypatch.setattr(train, "hide_cuda", lambda: None)
    if command == "syne train":
        with pytest.raises(torch.OutOfMemoryError) as raised:
            cli.main(["train", "--config", str(config)])
        said = "".join(traceback.format_exception(raised.value))
    else:
        assert train._as_one_rank(config, []) == 1  # a requeued job may have room: another one was there
        said = capsys.readouterr().err
    assert "Tried to allocate 2.00 GiB" in said
    assert f"`syne plan --config {config} --card CARD` says which fits" in said


def test_everything_of_a_step_lies_where_a_card_would_look_for_it(tmp_path: Path) -> None:
    out = tmp_path / "found"
    done = tiny.python(Path(__file__).with_name("meta_card.py"), out)
    assert done.returncode == 0, done.stderr[-4000:]
    scored, chunks = map(int, out.read_text().split())
    assert scored == 2 and chunks > 40
