"""Our training step against a bare megatron-core loop on the same model, optimizer and data, in one process.

Ours reads samples from token files, packs them, runs trainer.train_step, agrees on stopping and logs; the bare loop has
its packed batches ready in memory and calls megatron-core's schedule and optimizer, nothing else.

python -m benchmarks.train_loop [--pairs 12] [--steps 4]
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import interleaved, ratio_of
from megatron_synE.config.load import load_config
from megatron_synE.train import build_trainer
from megatron_synE.trainer import Trainer, forward_step
from tests import tiny

TARGET = 0.98
SHAPE = {
    "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 8192,
}  # fmt: skip


def bare_step(trainer: Trainer, batches: list[object]) -> None:
    """What any megatron-core loop has to do, and no more."""
    for module in trainer.model.ddp:
        module.zero_grad_buffer()
    trainer.optimizer.zero_grad()
    trainer.model.forward_backward(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=trainer.model.ddp[0],
        num_microbatches=len(batches),
        seq_length=trainer.config.training.seq_length * trainer.config.training.micro_batch_size,
        micro_batch_size=1,
        forward_only=False,
    )
    trainer.optimizer.step()


def main() -> None:
    options = parser_of(__doc__, pairs=12, steps=4).parse_args()
    with Record("train_loop", keep=options.record) as record, tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        hf = tiny.hf_folder(root / "hf", **SHAPE)
        tiny.manifest(root / "train", {("en", "web", "x"): 400_000}, vocab_size=8192)
        tokens = (2 * options.pairs + 4) * options.steps * 8 * 256
        tree = tiny.run_tree(
            root,
            hf=hf,
            training={"seq_length": 256, "global_batch_size": 8, "micro_batch_size": 2, "precision": "fp32"},
            data={
                "manifests": [str(root / "train")],
                "stages": [{"name": "a", "tokens": tokens, "languages": {"en": 1.0}}],
                "max_epochs": 1000.0,
            },
            validation={"manifests": []},
        )
        trainer = build_trainer(load_config(tiny.write_run(root, tree)), root / "run.yaml")
        samples = trainer.samples()
        ready = [trainer.collate(next(samples)) for _ in range(4 * options.steps)]

        def timed(step: Callable[[int], None]) -> float:
            start = time.perf_counter()
            for index in range(options.steps):
                step(index)
            return time.perf_counter() - start

        pairs = interleaved(
            lambda: timed(lambda index: trainer.iterate(samples)),
            lambda: timed(lambda index: bare_step(trainer, ready[4 * index : 4 * index + 4])),
            num_pairs=options.pairs,
        )
        speeds = ratio_of([(bare_seconds, our_seconds) for our_seconds, bare_seconds in pairs])
        what = "our training step to a bare megatron-core loop, tokens/s, same model and process, fp32"
        record.add(Figure.of(what, speeds, target=TARGET, note=f"{torch.get_num_threads()} threads"))


if __name__ == "__main__":
    main()
