"""Each silent trap of megatron-core, sprung on purpose: our comparison sees it, and the code as shipped is out of it.

A sprung run and the shipped one start from the same weights and read the same samples; what is compared is the weights
after five steps (1e-4 is the tolerance of tests/parity) or the gradient norm (1e-4 relative), because most of these
traps leave the losses alone. One that does not show here any more is one whose work-around can go.
"""

import ast
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from megatron_synE.checkpoint.chunk_reader import ChunkReader
from tests import tiny
from tests.layouts import OVERLAP, TP2, TP2_SP, VPP, ZERO2

WEIGHTS = 1e-4
NORMS = 1e-4
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "one process": (1, []),
    "padded": (1, ["model.make_vocab_size_divisible_by=384"]),
    "DP2 overlapped": (2, OVERLAP),
    "DP2 ZeRO2": (2, ZERO2),
    "TP2": (2, TP2),
    "TP2 SP": (2, TP2_SP),
    "VPP": (2, VPP),
}


@dataclass(frozen=True)
class Outcome:
    """What five steps made."""

    losses: list[float]
    grad_norms: list[float]
    weights: dict[str, torch.Tensor]
    folder: Path

    def loss_distance(self, other: "Outcome") -> float:
        return max(abs(a - b) for a, b in zip(self.losses, other.losses, strict=True))

    def norm_distance(self, other: "Outcome") -> float:
        return max(abs(a / b - 1) for a, b in zip(self.grad_norms, other.grad_norms, strict=True))

    def weight_distance(self, other: "Outcome", *, only: str = "") -> float:
        return max(float((self.weights[k] - other.weights[k]).abs().max()) for k in self.weights if only in k)


Run = Callable[..., Outcome]


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    reader = ChunkReader(checkpoint)
    keys = [key for key in reader.keys if not key.startswith("optimizer.")]
    return {key: reader.read(key, (0,) * len(reader.shape(key)), reader.shape(key)) for key in keys}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(trap, layout) -> Outcome, each pair once."""
    root = tmp_path_factory.mktemp("traps")
    config = tiny.prepared(root, validation={"manifests": []})
    known: dict[tuple[str, str], Outcome] = {}

    def outcome(trap: str, layout: str = "one process") -> Outcome:
        if (trap, layout) in known:
            return known[trap, layout]
        nproc, overrides = LAYOUTS[layout]
        folder = root / f"{trap}-{layout}".replace(" ", "-")
        script = Path(__file__).with_name("sprung_run.py")
        tiny.launched(nproc, script, trap, config, f"run.dir={folder}", *overrides)
        rows = tiny.rows(folder, "train")
        known[trap, layout] = Outcome(
            [row["lm_loss"] for row in rows],
            [row["grad_norm"] for row in rows],
            weights_of(folder / "checkpoints/iter_0000005"),
            folder,
        )
        return known[trap, layout]

    return outcome


def assert_shipped_is_right(run: Run, layout: str) -> Outcome:
    """The layout without a trap equals one process; gives it."""
    shipped = run("none", layout)
    assert shipped.weight_distance(run("none")) <= WEIGHTS
    assert shipped.norm_distance(run("none")) <= NORMS
    return shipped


def test_s1_batched_p2p_in_an_interleaved_pipeline_of_two(run: Run) -> None:
    shipped = assert_shipped_is_right(run, "VPP")
    sprung = run("batched p2p", "VPP")
    assert sprung.norm_distance(shipped) > 10 * NORMS
    assert sprung.weight_distance(shipped) > 10 * WEIGHTS


def test_s2_torch_adamw_shares_one_step_counter_after_loading(run: Run) -> None:
    assert run("round trip").weight_distance(run("none")) == 0.0
    assert run("round trip of torch AdamW").weight_distance(run("none")) > WEIGHTS


@pytest.mark.parametrize("trap", ["norms without sequence_parallel mark", "final norm without sequence_parallel mark"])
def test_s3_a_norm_without_its_mark_leaves_losses_alone_and_drifts(run: Run, trap: str) -> None:
    shipped = assert_shipped_is_right(run, "TP2 SP")
    sprung = run(trap, "TP2 SP")
    assert sprung.weight_distance(shipped, only="norm") > WEIGHTS
    assert sprung.loss_distance(shipped) < 1e-3  # which is why losses are not what is compared


def test_s4_a_logged_loss_that_is_not_a_copy_is_divided_in_place(run: Run) -> None:
    right = run("none").losses
    divided = run("logged loss shares memory").losses
    assert all(wrong < 0.5 * loss for wrong, loss in zip(divided, right, strict=True))
    # The same schedule, dividing in place, cannot reach what we log.
    assert run("copied loss, divided in place").losses == pytest.approx(right, abs=1e-5)


def test_s5_overlapped_gather_without_a_forced_sync_leaves_a_rank_weights_of_the_step_before(run: Run) -> None:
    shipped = assert_shipped_is_right(run, "DP2 overlapped")
    sprung = run("no forced sync", "DP2 overlapped")
    assert sprung.losses == shipped.losses
    assert sprung.weight_distance(shipped) > WEIGHTS


def test_s6_padded_vocabulary_rows_take_part_in_the_softmax(run: Run) -> None:
    shipped = assert_shipped_is_right(run, "padded")
    assert shipped.loss_distance(run("none")) <= 1e-5
    sprung = run("padding in the softmax", "padded")
    assert sprung.loss_distance(shipped) > 1e-2
    assert sprung.weight_distance(shipped) > WEIGHTS


def test_s8_a_background_write_without_a_snapshot_holds_weights_of_later_steps(run: Run) -> None:
    """What is written late must be what was there when the save was asked for."""
    right, sprung = (
        weights_of(run(t).folder / "checkpoints/iter_0000002") for t in ("late write", "late write without snapshot")
    )
    last = run("none").weights
    distance = {
        name: max(float((w[k] - last[k]).abs().max()) for k in last)
        for name, w in (("right", right), ("sprung", sprung))
    }
    assert distance["sprung"] == 0.0
    assert distance["right"] > WEIGHTS


def test_s10_borders_separate_documents_and_positions_alone_do_not(run: Run) -> None:
    assert run("attention across documents").weight_distance(run("none")) > WEIGHTS
    # Rotary positions are relative: inside true borders a shift of all of them shows only as rounding.
    assert run("positions run on").weight_distance(run("none")) <= WEIGHTS


def test_s10_megatron_core_s_own_rotary_embedding_does_not_restart_if_max_seqlen_is_the_row() -> None:
    from megatron_synE.kernels.plain import rotate
    from megatron_synE.model.rope import cos_sin
    from megatron_synE.runtime.mcore import TransformerConfig  # the gateway: megatron.core may now be imported

    from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb  # isort: skip

    total, bounds = 12, torch.tensor([0, 5, 12], dtype=torch.int32)
    x = torch.randn(total, 1, 8, generator=torch.Generator().manual_seed(0))
    inverse = 1.0 / 10000.0 ** (torch.arange(0, 8, 2).float() / 8)
    positions = torch.cat((torch.arange(5), torch.arange(7)))
    cos, sin = cos_sin(inverse, positions, torch.float32)
    ours = rotate(x, cos, sin)
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1, apply_rope_fusion=False)

    class Alone:
        def size(self) -> int:
            return 1

        def rank(self) -> int:
            return 0

    def theirs(max_seqlen: int) -> torch.Tensor:
        angles = torch.outer(torch.arange(max_seqlen).float(), inverse)
        frequencies = torch.cat((angles, angles), dim=-1)[:, None, None, :]
        return apply_rotary_pos_emb(x, frequencies, config, cu_seqlens=bounds, cp_group=Alone())

    assert torch.allclose(theirs(7), ours, atol=1e-6)
    assert not torch.allclose(theirs(total), ours, atol=1e-2)


def test_weights_without_initialisation_lose_their_mark_and_the_gradient_norm_misses_ranks(run: Run) -> None:
    shipped = assert_shipped_is_right(run, "TP2")
    sprung = run("no initialisation", "TP2")
    assert sprung.losses[0] == pytest.approx(shipped.losses[0], abs=1e-5)
    assert sprung.norm_distance(shipped) > 0.05


def test_weight_decay_left_to_megatron_s_scheduler_reaches_the_norms(run: Run) -> None:
    sprung = run("weight decay on norms")
    assert sprung.loss_distance(run("none")) < 1e-3
    assert sprung.weight_distance(run("none"), only="norm") > WEIGHTS


@pytest.mark.parametrize("trap", ["norm of one part", "last micro-batch alone", "weights not gathered"])
def test_gradients_and_weights_in_parts_that_are_not_put_together_show(run: Run, trap: str) -> None:
    shipped = assert_shipped_is_right(run, "DP2 ZeRO2")
    sprung = run(trap, "DP2 ZeRO2")
    assert sprung.norm_distance(shipped) > 10 * NORMS
    assert sprung.weight_distance(shipped) > WEIGHTS


def test_h1_psutil_is_declared_because_megatron_core_does_not() -> None:
    """Without it a save of megatron-core's dist_checkpointing hangs; people use that on our checkpoints."""
    declared = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert any(requirement.startswith("psutil") for requirement in declared)


def test_c2_nothing_here_saves_through_the_optimizer_s_sharded_state_dict() -> None:
    """Its default format cannot be saved, another gathers a whole stage on every rank; ours is model_space.py."""
    callers = [
        f"{path.relative_to(tiny.ROOT)}:{node.lineno}"
        for package in ("megatron_synE", "tools")
        for path in (tiny.ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("sharded_state_dict", "sharded_param_state_fs_model_space")
    ]
    assert callers == []
