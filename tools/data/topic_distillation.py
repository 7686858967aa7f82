"""An encoder learns to say what a frozen sentence encoder, its teacher, says of text without labels.

    texts ─ windows of 8 to 48 tokens ─┬─ encoder ─ mean state [b, h] ─ project ─ [b, d] ─┐
                                       └─ teacher ─────────────────────────────── [b, d] ─┴─ squared distance
TinyBERT's idea (arXiv 1909.10351) with a sentence encoder in place of BERT: what the teacher knows of words that no
labelled document has, and of how two languages say the same, comes along. A text that leaves the teacher's vector open
gets a shorter one, since the distance is squared.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from data_mixers.errors import DataError
from tools.data.documents import TaskDocuments
from tools.data.kept import Kept, Tensors
from tools.data.progress import LiveProgress
from tools.data.readers import plan_tasks
from tools.data.topic_baselines import Encode
from tools.data.topic_model import TopicClassifier, padded, predict_features
from tools.data.topic_options import WEIGHT_DECAY, TrainingOptions

logger = logging.getLogger(__name__)
SHORTEST, LONGEST = 8, 48  # tokens of a window (ours): a title, and some sentences; without [CLS] and [SEP]
POOL_STEPS = 32  # windows of so many steps are sorted by length together: hardly any padding
FIT_STEPS = 128  # the projection is fitted on the windows of so many steps: ten times as many as features
RIDGE = 0.1  # of the mean variance of a feature (ours)
PART_STEPS = 100  # kept together: a minute of a core
WARMUP_STEPS = 50
COOLDOWN_SHARE = 0.25
"""Of the steps, the last: the rate falls to 0. Before, it does not depend on how many steps there are (WSD, arXiv
2404.06395), so that a run can be made longer."""


@dataclass(frozen=True)
class Window:
    """The same stretch of a text for both."""

    text: str
    row: list[int]
    """Token ids, [CLS] and [SEP] included."""


def distil(
    model: TopicClassifier,
    tokenizer: Tokenizer,
    texts: Sequence[Sequence[str]],
    teacher: Encode,
    *,
    options: TrainingOptions,
    kept: Kept,
    device: str = "cpu",
) -> Tensors:
    """Trains the encoder in place; the weights it changed, and project.weight and project.bias.

    The projection is fitted once, before: trained along, at the encoder's rate, it throws away what it has found, since
    the features' means are large beside what sets texts apart.
    texts: of each file; every file counts alike. Windows come again when there are fewer than steps ask for.
    Its parts of PART_STEPS steps are steps of `kept`, so that a call that was killed goes on from the last one.
    """
    batches = _batches(tokenizer, texts, options)
    model.to(device).eval()  # without dropout: no window comes often
    project = kept.tensors("projection", lambda: _fitted(model, batches[:FIT_STEPS], teacher, device))
    to_teacher = nn.Linear(*project["weight"].shape[::-1])
    to_teacher.load_state_dict(project)
    to_teacher.to(device).requires_grad_(False)
    parameters = {name: weight for name, weight in model.encoder.named_parameters() if weight.requires_grad}
    num_parts = -(-options.steps // PART_STEPS)
    with LiveProgress("distillation", total=options.steps, unit="steps", scale=1.0) as progress:

        def part(number: int, before: Tensors) -> Tensors:
            optimizer = torch.optim.AdamW(parameters.values(), lr=options.learning_rate, weight_decay=WEIGHT_DECAY)
            first, last = number * PART_STEPS, min(options.steps, (number + 1) * PART_STEPS)
            if before:
                _restore(model.encoder, parameters, optimizer, before, first)
            distance = 0.0
            for step in range(first, last):
                cooldown = (options.steps - step) / max(1.0, COOLDOWN_SHARE * options.steps)
                for group in optimizer.param_groups:
                    group["lr"] = options.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS, cooldown)
                distance += _step(model, to_teacher, batches[step], teacher, optimizer, device)
                progress.advance(1)
            logger.info("to step %d: squared distance to the teacher %.3f", last, distance / (last - first))
            return _state(parameters, optimizer)

        found = kept.parts("distilled", num_parts, part)
    model.encoder.load_state_dict({name: found[name] for name in parameters}, strict=False)
    learnt = {f"encoder.{name}": found[name] for name in parameters}
    return learnt | {f"project.{name}": weight for name, weight in project.items()}


def texts_of(file: Path, text_key: str) -> list[str]:
    """Its documents; lines that are none are left out. Errors: DataError if there is no document."""
    found = [document.text for task in plan_tasks([file]) for document in TaskDocuments(task, text_key=text_key)]
    if not found:
        raise DataError(f"--unlabelled {file}: no document with {text_key!r} was found")
    return found


def windows_of(tokenizer: Tokenizer, texts: Sequence[str], *, random: np.random.Generator) -> Iterator[Window]:
    """Every text from its beginning to its end, in windows of any length from SHORTEST to LONGEST tokens.

    None is longer than the classifier reads.
    """
    cut = tokenizer.truncation
    longest = min(LONGEST, cut["max_length"] - 2) if cut else LONGEST
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    for start in range(0, len(texts), 1000):
        some = texts[start : start + 1000]
        for text, encoding in zip(some, whole.encode_batch(list(some)), strict=True):
            ids, offsets = encoding.ids, encoding.offsets
            at, end = 1, len(ids) - 1
            while at < end:
                upto = min(end, at + int(random.integers(SHORTEST, longest + 1)))
                piece = text[offsets[at][0] : offsets[upto - 1][1]]
                if piece.strip():
                    yield Window(piece, [ids[0], *ids[at:upto], ids[-1]])
                at = upto


def _batches(tokenizer: Tokenizer, texts: Sequence[Sequence[str]], options: TrainingOptions) -> list[list[Window]]:
    """One a step. More steps only add to them."""
    size, needed = options.batch_documents, options.steps * options.batch_documents
    count = -(-needed // len(texts))  # of each file
    drawn = []
    for number, of_file in enumerate(texts):
        random = np.random.default_rng([options.seed, number])
        windows = list(windows_of(tokenizer, of_file, random=random))
        rounds = [random.permutation(len(windows)) for _ in range(-(-count // len(windows)))]  # all before any again
        drawn.append([windows[place] for place in np.concatenate(rounds)[:count]])
    mixed = [window for at in zip(*drawn, strict=True) for window in at][:needed]
    batches = []
    for start in range(0, needed, POOL_STEPS * size):
        pool = sorted(mixed[start : start + POOL_STEPS * size], key=lambda window: len(window.row))
        some = [pool[at : at + size] for at in range(0, len(pool), size)]
        order = np.random.default_rng([options.seed, len(texts), start]).permutation(len(some))
        batches += [some[place] for place in order]
    return batches


@torch.no_grad()
def _fitted(model: TopicClassifier, batches: Sequence[list[Window]], teacher: Encode, device: str) -> Tensors:
    """Weight [d, h] and bias of the ridge regression from the features before training to the teacher's vectors."""
    windows = [window for batch in batches for window in batch]
    features = predict_features(model, [window.row for window in windows], device=device).double()  # [n, h]
    wanted = torch.from_numpy(teacher([window.text for window in windows])).double()  # [n, d]
    centred = features - features.mean(dim=0)
    covariance = centred.T @ centred
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.double)
    weight = torch.linalg.solve(covariance + ridge, centred.T @ wanted).T
    return {"weight": weight.float(), "bias": (wanted.mean(dim=0) - weight @ features.mean(dim=0)).float()}


def _step(
    model: TopicClassifier,
    to_teacher: nn.Linear,
    windows: Sequence[Window],
    teacher: Encode,
    optimizer: torch.optim.Optimizer,
    device: str,
) -> float:
    wanted = torch.from_numpy(teacher([window.text for window in windows])).to(device)  # [b, d]
    ids, mask = padded([window.row for window in windows], device=device)
    # bfloat16: 1.6 times as many windows a second on a CPU that has it.
    with torch.autocast(device, dtype=torch.bfloat16):
        features = model.features(ids, mask)  # [b, h]
    loss = (to_teacher(features.float()) - wanted).square().sum(dim=1).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return float(loss.detach())


def _state(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Tensors:
    moments = {
        f"{moment}.{name}": optimizer.state[weight][moment]
        for name, weight in parameters.items()
        for moment in ("exp_avg", "exp_avg_sq")
    }
    return {name: weight.detach().clone() for name, weight in parameters.items()} | moments


def _restore(
    encoder: nn.Module, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, before: Tensors, steps: int
) -> None:
    encoder.load_state_dict({name: before[name] for name in parameters}, strict=False)
    for name, weight in parameters.items():
        moments = {moment: before[f"{moment}.{name}"].to(weight) for moment in ("exp_avg", "exp_avg_sq")}
        optimizer.state[weight] = {"step": torch.tensor(float(steps)), **moments}
