"""Our trainer against the one of transformers: same model, data shape, cores and precision; processes in turn.

Ours: two data-parallel processes of one thread each, bf16 weights, fp32 masters, per-document attention.
Theirs, at its best: one process with two threads, or (--their-ranks 2) DDP over two processes of one thread; bf16
weights, SDPA, AdamW on fp32 masters (a wrapper here, as Trainer has none), no evaluation, no saving.
Each call trains a few steps and reports the median seconds of all but the first; speeds are tokens per second.

python -m benchmarks.hf_trainer [--pairs 10] [--steps 4] [--their-ranks 1]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks._figures import Figure, Record, add_record_option
from benchmarks._pairs import interleaved, ratio_of
from megatron_synE.runtime.cpu_features import cpu_has_bf16
from tests import tiny

ROOT = Path(__file__).parents[1]
SHAPE = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 16384, "tie_word_embeddings": True,
}  # fmt: skip
SEQ_LENGTH, GLOBAL_BATCH, MICRO_BATCH = 512, 8, 2
TARGET = 1.0


class MasterAdamW(torch.optim.Optimizer):
    """torch's fused AdamW on fp32 copies of bf16 parameters: what mixed-precision training needs to be exact."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self._model = params
        self._masters = [p.detach().float().clone().requires_grad_() for p in params]
        self._inner = torch.optim.AdamW(self._masters, lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for master, param in zip(self._masters, self._model, strict=True):
            master.grad = None if param.grad is None else param.grad.float()
        self._inner.step()
        for master, param in zip(self._masters, self._model, strict=True):
            param.copy_(master)


def their_steps(
    hf: Path, steps: int, precision: str, samples: Path | None, *, deepspeed: bool = False
) -> dict[str, Any]:
    """Run Trainer in this process; median seconds of a step but the first, and the losses. Writes nothing.

    samples: an array [number, tokens + 1] to train on in this order, one process only; else random tokens.
    deepspeed: its ZeRO-2, which keeps masters of its own, and checkpointing of activations.
    """
    import numpy as np
    from torch.utils.data import Dataset, SequentialSampler
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    given = None if samples is None else np.load(samples)

    class Tokens(Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return 10_000 if given is None else len(given)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            if given is not None:
                tokens = torch.from_numpy(given[index].astype(np.int64))
                # The model takes labels as given when they are called shift_labels.
                return {"input_ids": tokens[:-1], "labels": tokens[:-1], "shift_labels": tokens[1:]}
            generator = torch.Generator().manual_seed(index)
            ids = torch.randint(0, SHAPE["vocab_size"], (SEQ_LENGTH,), generator=generator)
            return {"input_ids": ids, "labels": ids}

    class Clock(TrainerCallback):
        seconds: list[float]

        def __init__(self) -> None:
            self.seconds, self._start = [], 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self._start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.perf_counter() - self._start)

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments: Any) -> Any:
            return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=dtype, attn_implementation="sdpa")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, max_steps=steps, per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=GLOBAL_BATCH // MICRO_BATCH // world, use_cpu=True, report_to=[],
            save_strategy="no", logging_strategy="steps", logging_steps=1, remove_unused_columns=False,
            max_grad_norm=1.0, dataloader_num_workers=0,
            ddp_backend="gloo" if world > 1 else None, disable_tqdm=True, gradient_checkpointing=deepspeed,
            deepspeed=_zero_2(precision) if deepspeed else None, bf16=deepspeed and precision == "bf16",
        )  # fmt: skip
        clock = Clock()
        parameters = list(model.parameters())
        optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
            if deepspeed
            else MasterAdamW(parameters, lr=1e-4)
        )
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        trainer = InOrder(
            model=model, args=arguments, train_dataset=Tokens(), callbacks=[clock], optimizers=(optimizer, constant)
        )
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"seconds": statistics.median(clock.seconds[1:]), "losses": losses}


def _zero_2(precision: str) -> dict[str, Any]:
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    rest = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": precision == "bf16"}}
    return dict.fromkeys(auto, "auto") | rest | {"zero_allow_untested_optimizer": True}


def run_theirs(
    hf: Path, steps: int, precision: str, ranks: int, *, samples: Path | None = None, deepspeed: bool = False
) -> dict[str, Any]:
    """What their_steps gives, of a fresh Trainer process (or DDP group of two)."""
    command = [sys.executable, "-m", "benchmarks.hf_trainer", "--child", str(hf), str(steps), precision]
    command += [str(samples)] if samples else []
    command += ["deepspeed"] if deepspeed else []
    threads = str(max(1, 2 // ranks))
    processes = [
        subprocess.Popen(
            command,
            env=os.environ
            | {"OMP_NUM_THREADS": threads}
            | (
                {
                    "RANK": str(r),
                    "LOCAL_RANK": str(r),
                    "WORLD_SIZE": str(ranks),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": "29611",
                }
                if ranks > 1 or deepspeed
                else {}
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(ranks)
    ]
    outputs = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"transformers' Trainer failed:\n{outputs[0][1][-3000:]}")
    answer: dict[str, Any] = json.loads(outputs[0][0].splitlines()[-1])
    return answer


def run_ours(config: Path, run: Path, steps: int) -> dict[str, Any]:
    """The same of a fresh `syne train` of two processes of one thread."""
    command = [sys.executable, "-m", "tools", "train", "--config", str(config), "--nproc", "2", f"run.dir={run}"]
    done = subprocess.run(
        [*command, f"training.stop_after_iterations={steps}"], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode != 75:
        raise SystemExit(f"syne train: exit {done.returncode}\n{done.stderr[-3000:]}")
    rows = tiny.rows(run, "train")
    seconds = [row["step_seconds"] for row in rows[1:]]
    return {"seconds": statistics.median(seconds) if seconds else 0.0, "losses": [row["lm_loss"] for row in rows]}


def main() -> None:
    """Print the ratio of speeds, ours to theirs."""
    if sys.argv[1:2] == ["--child"]:
        samples = Path(sys.argv[5]) if len(sys.argv) > 5 else None
        deepspeed = "deepspeed" in sys.argv[6:]
        print(json.dumps(their_steps(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], samples, deepspeed=deepspeed)))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--their-ranks", type=int, choices=(1, 2), default=1)
    add_record_option(parser)
    options = parser.parse_args()
    precision = "bf16" if cpu_has_bf16() else "fp32"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        hf = tiny.hf_folder(root / "hf", dtype=torch.bfloat16, **SHAPE)
        tiny.manifest(root / "train", {("en", "web", "x"): 300_000}, vocab_size=16384)
        tree = tiny.run_tree(
            root,
            hf=hf,
            training={
                "seq_length": SEQ_LENGTH, "global_batch_size": GLOBAL_BATCH, "micro_batch_size": MICRO_BATCH,
                "precision": precision,
            },
            data={
                "manifests": [str(root / "train")],
                "stages": [{"name": "a", "tokens": 100 * GLOBAL_BATCH * SEQ_LENGTH, "languages": {"en": 1.0}}],
                "max_epochs": 1000.0,
            },
            validation={"manifests": []},
        )  # fmt: skip
        config = tiny.write_run(root, tree)
        count = 0

        def ours() -> float:
            nonlocal count
            count += 1
            return float(run_ours(config, root / f"run{count}", options.steps)["seconds"])

        pairs = interleaved(
            ours,
            lambda: float(run_theirs(hf, options.steps, precision, options.their_ranks)["seconds"]),
            num_pairs=options.pairs,
        )
        tokens = GLOBAL_BATCH * SEQ_LENGTH
        rates = [tokens / statistics.median(side) for side in zip(*pairs, strict=True)]
        record = Record("hf_trainer", keep=options.record)
        what = (
            f"ours to transformers' Trainer, a small model, tokens/s, {precision}, their ranks: {options.their_ranks}"
        )
        speeds = ratio_of([(theirs, our) for our, theirs in pairs])
        record.add(Figure.of(what, speeds, target=TARGET, note=f"{rates[0]:.0f} against {rates[1]:.0f} tokens/s"))
        record.close()


if __name__ == "__main__":
    main()
