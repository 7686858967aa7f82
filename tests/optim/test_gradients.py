"""Norm and scaling of all gradients at once are, to the bit, what megatron-core computes one by one."""

import math

import pytest
import torch

from megatron_synE.optim.gradients import install_where_needed, l2_norm, scale_in_place
from megatron_synE.runtime.mcore import mcore_clip_grads

from megatron.core.utils import local_multi_tensor_l2_norm, local_multi_tensor_scale  # isort: skip

FLAG = torch.zeros(1, dtype=torch.int)


def gradients() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [scale * torch.randn(size) for size, scale in ((1, 1e-3), (700, 3.0), (64, 1e-8), (4097, 0.1))]


def test_the_norm_is_that_of_all_elements() -> None:
    found, _ = l2_norm(65536, FLAG, [gradients()], False)
    assert found.shape == (1,)
    theirs, _ = local_multi_tensor_l2_norm(65536, FLAG, [gradients()], False)
    assert torch.equal(found, theirs)
    assert float(found) == pytest.approx(math.sqrt(sum(float(g.double().square().sum()) for g in gradients())))
    for bad in (math.nan, math.inf):
        broken = gradients()
        broken[2][5] = bad
        assert not l2_norm(65536, FLAG, [broken], False)[0].isfinite().any()


def test_scaling_is_in_place() -> None:
    ours, theirs = gradients(), gradients()
    places = [g.data_ptr() for g in ours]
    scale_in_place(65536, FLAG, [ours, ours], 0.3)
    local_multi_tensor_scale(65536, FLAG, [theirs, theirs], 0.3)
    assert [g.data_ptr() for g in ours] == places
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_what_apex_or_transformer_engine_bring_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcore_clip_grads, "l2_norm_impl", local_multi_tensor_l2_norm)
    monkeypatch.setattr(mcore_clip_grads, "multi_tensor_scale_impl", local_multi_tensor_scale)
    install_where_needed()
    assert mcore_clip_grads.l2_norm_impl is l2_norm
    assert mcore_clip_grads.multi_tensor_scale_impl is scale_in_place
    theirs = math.hypot  # any function that is not megatron-core's own
    monkeypatch.setattr(mcore_clip_grads, "l2_norm_impl", theirs)
    install_where_needed()
    assert mcore_clip_grads.l2_norm_impl is theirs
