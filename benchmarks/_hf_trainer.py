"""transformers' Trainer at its best on a CPU, for train_step: one process of two threads, SDPA, AdamW on fp32 masters.

The masters are a wrapper here, as Trainer has none; nothing is evaluated or saved. argv = HF folder, steps, precision,
weight decay, micro-batch, samples (an array [number, tokens + 1], taken in this order), and "deepspeed" for its ZeRO-2,
which keeps masters of its own, with checkpointing of activations. Prints {"seconds": median of all steps but the first,
"losses": of each}.
"""

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

GLOBAL_BATCH = 8
LR, BETAS = 1e-4, (0.9, 0.95)


class MasterAdamW(torch.optim.Optimizer):
    """torch's fused AdamW on fp32 copies of bf16 parameters: what mixed-precision training needs to be exact."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr})
        self._model = params
        self._masters = [p.detach().float().clone().requires_grad_() for p in params]
        self._inner = torch.optim.AdamW(self._masters, lr=lr, betas=BETAS, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it by closure
        for master, param in zip(self._masters, self._model, strict=True):
            master.grad = None if param.grad is None else param.grad.float()
        self._inner.step()
        for master, param in zip(self._masters, self._model, strict=True):
            param.copy_(master)


def train(
    hf: Path, steps: int, precision: str, weight_decay: float, micro_batch: int, samples: Path, *, deepspeed: bool
) -> dict[str, Any]:
    """Run Trainer in this process."""
    import numpy as np
    from torch.utils.data import Dataset, SequentialSampler
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    given = np.load(samples)

    class Tokens(Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return len(given)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            tokens = torch.from_numpy(given[index].astype(np.int64))
            # The model takes labels as given when they are called shift_labels.
            return {"input_ids": tokens[:-1], "labels": tokens[:-1], "shift_labels": tokens[1:]}

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._start = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self._start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.perf_counter() - self._start)

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments: Any) -> Any:
            return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # a Dataset has a length here

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=dtype, attn_implementation="sdpa")
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, max_steps=steps, per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=GLOBAL_BATCH // micro_batch, use_cpu=True, report_to=[], save_strategy="no",
            logging_strategy="steps", logging_steps=1, remove_unused_columns=False, max_grad_norm=1.0,
            dataloader_num_workers=0, disable_tqdm=True, gradient_checkpointing=deepspeed,
            deepspeed=_zero_2(precision) if deepspeed else None, bf16=deepspeed and precision == "bf16",
            learning_rate=LR, lr_scheduler_type="constant", weight_decay=weight_decay, adam_beta1=BETAS[0],
            adam_beta2=BETAS[1], optim="adamw_torch_fused",
        )  # fmt: skip
        clock = Clock()
        optimizers: Any = (None, None)  # under DeepSpeed Trainer makes its own, as its arguments say
        if not deepspeed:
            masters = MasterAdamW(list(model.parameters()), lr=LR, weight_decay=weight_decay)
            optimizers = (masters, torch.optim.lr_scheduler.LambdaLR(masters, lambda _: 1.0))
        trainer = InOrder(model=model, args=arguments, train_dataset=Tokens(), callbacks=[clock], optimizers=optimizers)
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"seconds": statistics.median(clock.seconds[1:]), "losses": losses}


def _zero_2(precision: str) -> dict[str, Any]:
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    rest = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": precision == "bf16"}}
    return dict.fromkeys(auto, "auto") | rest | {"zero_allow_untested_optimizer": True}


def run_theirs(
    hf: Path,
    steps: int,
    micro_batch: int,
    *,
    precision: str,
    weight_decay: float,
    samples: Path,
    deepspeed: bool = False,
) -> dict[str, Any]:
    """What `train` gives, of a fresh process. Errors: SystemExit with what it said."""
    command = ["-m", "benchmarks._hf_trainer", hf, steps, precision, weight_decay, micro_batch, samples]
    command += ["deepspeed"] if deepspeed else []
    # DeepSpeed looks for MPI unless a launcher's variables say that it is alone.
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    environment = os.environ | {"OMP_NUM_THREADS": "2"} | (alone if deepspeed else {})
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"transformers' Trainer failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


if __name__ == "__main__":
    given = sys.argv[1:7]
    answer = train(
        Path(given[0]), int(given[1]), given[2], float(given[3]), int(given[4]), Path(given[5]),
        deepspeed="deepspeed" in sys.argv[7:],
    )  # fmt: skip
    print(json.dumps(answer))
