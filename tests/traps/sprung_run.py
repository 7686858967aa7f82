"""One rank of a tiny run with one silent trap of megatron-core sprung: argv = trap, config, overrides.

Each trap is a pair of functions: what is broken before anything is built, and what is broken in the built trainer.
Five iterations, then a checkpoint of what the ranks hold.
"""

import dataclasses
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_synE.config.load import load_config
from megatron_synE.runtime.environment import Ranks, hide_cuda, ranks_from_environment

hide_cuda()  # before megatron-core is imported, which picks the device: hence E402 below

import megatron_synE.build as build  # noqa: E402
import megatron_synE.checkpoint.save as save  # noqa: E402
import megatron_synE.data.batch as batch  # noqa: E402
import megatron_synE.model.head as head  # noqa: E402
import megatron_synE.sharding.bucket as bucket  # noqa: E402
import megatron_synE.trainer as trainers  # noqa: E402
from megatron_synE.checkpoint.training_state import weight_chunks_to_load  # noqa: E402
from megatron_synE.runtime import distributed  # noqa: E402
from megatron_synE.runtime.mcore import parallel_state  # noqa: E402
from megatron_synE.train import build_trainer  # noqa: E402

ITERATIONS = 5


def core_config_with(**changes: Any) -> None:
    """megatron-core's configuration as shipped, but for these fields."""
    shipped = build.transformer_config

    def changed(*arguments: Any) -> Any:
        return dataclasses.replace(shipped(*arguments), **changes)

    build.transformer_config = changed


class ReadLater(dict[str, torch.Tensor]):
    """What is logged, kept as views of what is returned to the schedule, which divides that in place."""

    def __getitem__(self, key: str) -> torch.Tensor:
        return (
            torch.stack((self["nll"].double(), self["tokens"].double())) if key == "nll_and_tokens" else self.get(key)
        )  # type: ignore[return-value]


def alias_the_loss() -> None:
    """Log the very tensor that is returned to the schedule, in the mode that divides it."""
    core_config_with(calculate_per_token_loss=False)

    def loss(batch: Any, nll: torch.Tensor) -> Any:
        total, tokens = nll.sum(), batch.loss_mask.sum()
        return total, tokens.to(torch.int32), ReadLater(nll=total.detach(), tokens=tokens)

    trainers._loss = loss


def never_restart_positions() -> None:
    """What megatron-core's rotary embedding does when max_seqlen is the whole row."""
    shipped = batch.packed_row

    def running_on(*arguments: Any, **named: Any) -> Any:
        row = shipped(*arguments, **named)
        row.positions = torch.arange(len(row.positions))
        return row

    batch.packed_row = running_on


def attend_across_documents() -> None:
    """Positions may restart or not: without borders each document still sees the ones before it."""
    shipped = batch.packed_row

    def one_segment(bounds: tuple[int, ...], **named: Any) -> Any:
        borders = [border for border in bounds if border % SEQ_LENGTH == 0]
        row = shipped(bounds, **named)
        whole = shipped(tuple(borders), **named)
        whole.positions = row.positions
        return whole

    batch.packed_row = one_segment


SEQ_LENGTH = 32  # of tiny.run_tree


def unmask_padding() -> None:
    shipped = head.vocabulary_part
    head.vocabulary_part = lambda rows, *, vocab_size, group: shipped(rows, vocab_size=rows * group.size(), group=group)


def keep_torch_adamw() -> None:
    build.install_where_needed = lambda: "torch.optim.AdamW"


def forget_to_sync() -> None:
    """And take whole weights from a rank, as validation does: its own ranges, which a save takes, are always new."""
    trainers.sync_parameters = lambda model, plan: None
    trainers.chunks_to_save = lambda model, optimizer: weight_chunks_to_load(model) if dist.get_rank() == 0 else []


def unmark_norms(which: str) -> Callable[[Any], None]:
    def unmark(trainer: Any) -> None:
        marked = 0
        for chunk in trainer.model.chunks:
            for name, parameter in chunk.named_parameters():
                if which in name and "norm" in name:
                    marked += parameter.sequence_parallel
                    parameter.sequence_parallel = False
        assert marked, "nothing was marked: the trap is not sprung"

    return unmark


def decay_norms(trainer: Any) -> None:
    """megatron-core leaves weight_decay of every group at the optimizer's value; its own LR scheduler would mend it."""
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = trainer.config.optimizer.weight_decay


def miss_other_parts(trainer: Any) -> None:
    """Take the norm of this rank's part of the gradients for that of all."""
    alone = parallel_state.get_tensor_model_parallel_group()
    trainer.optimizer.get_grad_stats_parallel_group = lambda: alone


def forget_earlier_micro_batches() -> None:
    """Put the sum over ranks in the place of what was summed before, as a reduce-scatter into the part would."""

    def finish(reduction: bucket.Reduction) -> None:
        if reduction.work is not None:
            reduction.work.wait()
        reduction.gradients.copy_(reduction.part)

    bucket.Reduction.finish = finish  # type: ignore[method-assign]


def never_gather() -> None:
    bucket.Bucket.go_stale = lambda self: None  # type: ignore[method-assign]


def leave_gradients_to_the_hook(trainer: Any) -> None:
    """No trap: the plain way, in which .grad is made and DDP's hook adds it. Fails if nothing went the other way."""
    linears = [module for chunk in trainer.model.chunks for module in chunk.decoder.modules()]
    linears = [module for module in linears if hasattr(module, "gradient_accumulation_fusion")]
    assert len(linears) == 4 * trainer.plan.architecture.num_layers
    for linear in linears:
        assert linear.gradient_accumulation_fusion
        linear.gradient_accumulation_fusion = False


def write_without_snapshot() -> None:
    save._snapshot = lambda chunk: chunk
    WRITES_LATE.append(True)


def write_late() -> None:
    WRITES_LATE.append(True)


WRITES_LATE: list[bool] = []
TRAPS: dict[str, tuple[Callable[[], None] | None, Callable[[Any], None] | None]] = {
    "none": (None, None),
    "batched p2p": (lambda: core_config_with(batch_p2p_comm=True, overlap_p2p_comm=False), None),
    "norms without sequence_parallel mark": (None, unmark_norms("norm")),
    "final norm without sequence_parallel mark": (None, unmark_norms("final")),
    "logged loss shares memory": (alias_the_loss, None),
    "copied loss, divided in place": (lambda: core_config_with(calculate_per_token_loss=False), None),
    "padding in the softmax": (unmask_padding, None),
    "no forced sync": (forget_to_sync, None),
    "no initialisation": (lambda: core_config_with(perform_initialization=False), None),
    "weight decay on norms": (None, decay_norms),
    "norm of one part": (None, miss_other_parts),
    "last micro-batch alone": (forget_earlier_micro_batches, None),
    "weights not gathered": (never_gather, None),
    "gradients left to the hook": (None, leave_gradients_to_the_hook),
    "positions run on": (never_restart_positions, None),
    "attention across documents": (attend_across_documents, None),
    "round trip": (None, None),
    "round trip of torch AdamW": (keep_torch_adamw, lambda trainer: trainer.optimizer.optimizer.state.clear()),
    "late write": (write_late, None),
    "late write without snapshot": (write_without_snapshot, None),
}


def round_trip(optimizer: Any) -> None:
    """The optimizer through megatron-core's own state_dict and back, moments kept."""
    inner = optimizer.optimizer
    kept = {p: {name: state[name].clone() for name in ("exp_avg", "exp_avg_sq")} for p, state in inner.state.items()}
    optimizer.load_state_dict(optimizer.state_dict())
    for parameter, moments in kept.items():
        for name, values in moments.items():
            inner.state[parameter][name].copy_(values)


def hold_writes_until(event: threading.Event, saver: Any) -> None:
    write = saver._write

    def late(*arguments: Any) -> None:
        assert event.wait(60)
        write(*arguments)

    saver._write = late


def run(trap: str, config: Path, overrides: list[str]) -> None:
    before, after = TRAPS[trap]
    if before:
        before()
    trainer = build_trainer(load_config(config, overrides), config, ranks_from_environment() or Ranks(0, 1, 0))
    if after:
        after(trainer)
    samples = trainer.samples()
    stepped = threading.Event()
    for iteration in range(1, ITERATIONS + 1):
        trainer.iterate(samples)
        if iteration == 2 and trap.startswith("round trip"):
            round_trip(trainer.optimizer)
        if iteration == 2 and WRITES_LATE:
            hold_writes_until(stepped, trainer.saver)
            trainer._save(in_background=True)
    stepped.set()
    trainer.saver.finish()
    trainer._save(in_background=False)
    trainer.metrics.close()
    distributed.shut_down()


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
