"""Outside the logging interval a step waits for the device once: for the gradient norm."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.distributed.host_waits import Eyes
from tests.layouts import OVERLAP, TP2_SP, ZERO3

SCRIPT = Path(__file__).with_name("host_waits.py")
LAYOUTS = {
    "TP2 SP": TP2_SP,
    "DP2 ZeRO3 bf16 overlapped": [*ZERO3, "training.precision=bf16", *OVERLAP],
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("waits")
    return tiny.prepared(root, validation={"manifests": []}, logging={"interval_iterations": 100})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_between_two_logged_ones_reads_the_device_once(config: Path, tmp_path: Path, layout: str) -> None:
    tiny.launched(2, SCRIPT, config, f"run.dir={tmp_path / 'run'}", *LAYOUTS[layout])


HOST = torch.device("cpu")
WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "if": lambda x: bool(x.sum() > 0),
    "float": lambda x: float(x[0]),
    "tolist": lambda x: (2 * x).tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "index": lambda x: x[x > 0],
    "index_put": lambda x: x.index_put_((x > 0,), x[:1].expand(2)),
    "equal": lambda x: torch.equal(x, x + 1),
    "unique": lambda x: x.unique(),
    "host value": lambda x: torch.tensor(1.0, device=HOST),
    "device values": lambda x: torch.tensor([x[0], x[1]]),
    "copy down": lambda x: torch.empty(3).copy_(x),
    "copy up": lambda x: x.copy_(torch.ones(3)),
    "in a backward pass": lambda x: _Reading.apply(torch.ones(3, device=HOST, requires_grad=True)).sum().backward(),
}
PASSES: dict[str, Callable[[torch.Tensor], object]] = {
    "host": lambda x: torch.ones(3).sum().item() + sum(torch.arange(3).tolist()),
    "masked fill": lambda x: x.__setitem__(x > 0, 0.0),
    "copy in the background": lambda x: torch.empty(3).copy_(x, non_blocking=True).tolist(),
    "filled on the device": lambda x: torch.full((), 1.0, device=HOST) * x,
}


class _Reading(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float(gradient[0])


def waits_of(act: Callable[[torch.Tensor], object]) -> int:
    eyes, x = Eyes(), torch.tensor([1.0, 0.0, 2.0])
    eyes.mark(x)
    with eyes.open():
        act(x)
    return len(eyes.waits)


@pytest.mark.parametrize("name", WAITS)
def test_each_way_to_wait_is_seen(name: str) -> None:
    assert waits_of(WAITS[name]) >= 1


@pytest.mark.parametrize("name", PASSES)
def test_what_does_not_wait_is_not_counted(name: str) -> None:
    assert waits_of(PASSES[name]) == 0
