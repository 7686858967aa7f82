"""All contact with lm-evaluation-harness: its task files, its models, one task evaluated item by item."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data_mixers.errors import ConfigError, DataError, UserError
from megatron_synE.exit_codes import CheckpointError
from tools.evaluation.data_files import Found, Wanted, load
from tools.evaluation.options import EvalOptions
from tools.evaluation.results import Item, TaskResult
from tools.evaluation.suite import Benchmark

OWN_TASKS = Path(__file__).with_name("tasks")
SEED = 1234
"""The harness's own, for the exemplars that it draws."""
ANSWER_CHARACTERS = 2000
INSTALL = "pip install 'megatron-synE[eval]'"
NAN_BECAUSE = "its weights hold NaN, or they overflow in float16 (then --dtype bfloat16)"


@dataclass(frozen=True)
class PlannedTask:
    """One task file of a benchmark, before its data is read."""

    name: str
    benchmark: Benchmark
    config: dict[str, Any]
    """As in its YAML file; functions are not imported."""

    @property
    def eval_split(self) -> str:
        return str(self.config.get("test_split") or self.config.get("validation_split"))

    @property
    def exemplar_split(self) -> str | None:
        """Where the exemplars come from; None if there are none, or the task file holds them."""
        given = self.config.get("fewshot_config") or {}
        if self.benchmark.shots == 0 or "samples" in given:
            return None
        order = (self.config.get("fewshot_split"), given.get("split"), self.config.get("training_split"))
        return next((str(split) for split in order if split), self.eval_split)

    @property
    def wanted(self) -> Wanted | None:
        """The data it reads; None if it makes its own."""
        if not self.config.get("dataset_path"):
            return None
        splits = dict.fromkeys(split for split in (self.eval_split, self.exemplar_split) if split)
        return Wanted(str(self.config["dataset_path"]), self.config.get("dataset_name"), tuple(splits))


def absent_needs(benchmark: Benchmark) -> str:
    """How to install what the benchmark needs beside the harness; empty if all is there."""
    data = [need.partition(":")[2] for need in benchmark.needs if need.startswith("nltk:")]
    modules = [need for need in benchmark.needs if not need.startswith("nltk:")]
    told = [f"pip install {' '.join(absent)}"] if (absent := [m for m in modules if find_spec(m) is None]) else []
    if data:
        import nltk

        for place in data:
            try:
                nltk.data.find(place)
            except LookupError:  # the harness would fetch it unasked, and without a network fail when it scores
                told.append(f"python -m nltk.downloader {place.rpartition('/')[2]}")
    return ", ".join(told)


def plan_tasks(benchmark: Benchmark) -> list[PlannedTask]:
    """The task files of a benchmark, in the order of their names.

    Errors: ConfigError if a name or glob fits none, or fits a task of the harness that executes code.
    """
    from lm_eval.tasks._index import Kind

    index = _manager(task_folder(benchmark)).task_index
    planned: list[str] = []
    for pattern in benchmark.tasks:
        names = sorted(name for name, entry in index.items() if entry.kind is Kind.TASK and fnmatchcase(name, pattern))
        if not names:
            raise ConfigError(f"benchmark {benchmark.name}: no task file fits {pattern}")
        if unsafe := [name for name in names if benchmark.harness and (index[name].cfg or {}).get("unsafe_code")]:
            raise ConfigError(
                f"benchmark {benchmark.name}: {unsafe[0]} of the harness fetches code, and runs what the model writes "
                "in this process; syne_humaneval and syne_mbpp run it in the sandbox"
            )
        planned += [name for name in names if name not in planned]  # globs may overlap
    return [PlannedTask(name, benchmark, dict(index[name].cfg or {})) for name in planned]


def load_task(planned: PlannedTask, found: Found | None) -> Any:
    """The harness's task with its data.

    Errors: DataError if the data is not of the form that the task expects.
    """
    overrides: dict[str, Any] = {
        "task": planned.name,
        "num_fewshot": planned.benchmark.shots,
        # Splits that are not needed need not be there.
        "training_split": None,
        "fewshot_split": planned.exemplar_split,
    }
    if planned.config.get("test_split"):
        overrides["validation_split"] = None
    if found is not None and found.files:
        overrides["custom_dataset"] = lambda **settings: load(found)
    manager = _manager(task_folder(planned.benchmark))
    with _quiet():
        try:
            loaded = manager.load([{"group": "syne", "task": [overrides]}])
        except DataError:
            raise
        except ImportError as error:
            raise ConfigError(f"{planned.name} needs a module that is not installed: {error}") from error
        except Exception as error:  # a user's file can break any line of a task's template
            where = _where(planned, found)
            raise DataError(f"{planned.name} cannot read {where}: {type(error).__name__}: {error}") from error
    (task,) = loaded["tasks"].values()
    task.set_fewshot_seed(SEED)
    if not len(task.eval_docs):
        raise DataError(f"{planned.name}: {_where(planned, found)} holds no item of its kind")
    from tools.evaluation.same_kind import OfSameKind

    if isinstance(sampler := getattr(task, "sampler", None), OfSameKind):
        sampler.follow(task)
    _check_items(task, planned, found)
    return task


def _where(planned: PlannedTask, found: Found | None) -> str:
    return ", ".join(str(path) for files in (found.files if found else {}).values() for path in files) or str(
        planned.config.get("dataset_path")
    )


def _check_items(task: Any, planned: PlannedTask, found: Found | None) -> None:
    """Put every item and its gold answer into words once: else a faulty one of a long set ends an evaluation midway.

    Cost: under a millisecond an item, a fifth of what its prompts with exemplars take.
    """
    for number, doc in enumerate(task.eval_docs):
        try:
            task.doc_to_text(doc)
            target = task.doc_to_target(doc)
            if task.OUTPUT_TYPE == "multiple_choice":
                choices = task.doc_to_choice(doc)
                if isinstance(target, int) and not 0 <= target < len(choices):
                    raise ValueError(f"choice {target} of {len(choices)} is the right one")
        except Exception as error:  # any line of a template or of its functions
            raise DataError(
                f"{planned.name}: item {number} of {_where(planned, found)} is not of the form that is expected "
                f"({type(error).__name__}: {error})"
            ) from error


def num_requests(task: Any, limit: int | None) -> int:
    """About how many requests an evaluation of the task will make (items may differ in choices), for its progress."""
    documents = len(task.eval_docs)
    choices = len(task.doc_to_choice(task.eval_docs[0])) if task.OUTPUT_TYPE == "multiple_choice" else 1
    return choices * (min(documents, limit) if limit else documents)


def load_model(folder: Path, options: EvalOptions) -> Any:
    """The harness's model. No code of the folder runs.

    Errors: ConfigError for a missing backend; CheckpointError if transformers cannot read the folder, or it gives NaN.
    """
    with _quiet():
        try:
            return _vllm(folder, options) if options.backend == "vllm" else _hf(folder, options)
        except UserError:
            raise
        except Exception as error:  # a damaged file, no tokenizer, another transformers' configuration, no memory
            told = " ".join(str(error).split())
            raise CheckpointError(f"{folder} cannot be loaded: {type(error).__name__}: {told:.300}") from error


def _hf(folder: Path, options: EvalOptions) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    from megatron_synE.runtime.device import select

    device = select(options.device, local_rank=0)
    model = HFLM(
        pretrained=str(folder), dtype=options.dtype, device=device.kind, batch_size=options.batch_size,
        trust_remote_code=False,
    )  # fmt: skip
    if model._model_call(torch.tensor([model.tok_encode("1 + 1 = 2")], device=model.device)).isnan().any():
        raise CheckpointError(f"{folder}: the model gives NaN: {NAN_BECAUSE}")  # what it writes would only be wrong
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(model, kind, partial(getattr(model, kind), disable_tqdm=True))
    model.tok_decode = _decode_behind_a_text(model)
    return model


def _decode_behind_a_text(model: Any) -> Callable[..., str]:
    """The model's tok_decode for what continues a prompt.

    Llama-2's decoder (SentencePiece) drops the first blank of a text. The harness decodes a continuation by itself, so
    a first line of code would lose one blank of its indentation.
    """
    decode = model.tok_decode
    anchor = model.tok_encode("x", add_special_tokens=False)
    length = len(decode(anchor))

    def decode_behind(tokens: int | list[int], skip_special_tokens: bool = True) -> str:
        if isinstance(tokens, int):  # the control token that ends an answer
            return str(decode(tokens, skip_special_tokens=skip_special_tokens))
        return str(decode([*anchor, *tokens], skip_special_tokens=skip_special_tokens)[length:])

    return decode_behind


def describe(model: Any, options: EvalOptions) -> dict[str, Any]:
    """What decides a score beside the weights: device, precision, whether prompts begin with BOS."""
    described: dict[str, Any] = {
        "device": str(getattr(model, "device", options.device)),
        "max_length": model.max_length,
    }
    if options.backend == "hf":
        described["dtype"] = str(model.model.dtype).removeprefix("torch.")
        described["begins_with_bos"] = model.tok_encode("a")[0] == model.tokenizer.bos_token_id
    return described


def run_task(
    model: Any, task: Any, planned: PlannedTask, *, limit: int | None, runs_code: bool, progress: Callable[[int], None]
) -> TaskResult:
    """Every item of the task, answered and scored; progress hears of each answer.

    Errors: ConfigError if the benchmark's metric is none of the task's, or the device's memory does not suffice;
    CheckpointError if a log-likelihood is NaN: the harness takes the first choice then, and scores what chance does.
    """
    from lm_eval.evaluator import evaluate
    from torch import OutOfMemoryError

    benchmark, started = planned.benchmark, time.monotonic()
    model.set_cache_hook(_Heard(progress))
    try:
        with _quiet():
            found = evaluate(
                model, {"tasks": {planned.name: task}}, limit=limit, bootstrap_iters=0, log_samples=True,
                confirm_run_unsafe_code=runs_code,
            )  # fmt: skip
    except OutOfMemoryError as error:
        raise ConfigError(
            f"{planned.name}: out of memory on {model.device} at --batch-size {model.batch_size}; give a smaller one "
            "(all tasks are then measured with it), or a device with more memory"
        ) from error
    samples = [sample for sample in found["samples"][planned.name] if sample["filter"] == benchmark.filter]
    if not samples or benchmark.metric not in samples[0]:
        given = sorted(
            {f"{sample['filter']}: {', '.join(sample['metrics'])}" for sample in found["samples"][planned.name]}
        )
        raise ConfigError(
            f"benchmark {benchmark.name}: {planned.name} has no metric {benchmark.metric} behind the filter "
            f"{benchmark.filter}; it has {'; '.join(given)}"
        )
    items = tuple(_item(sample, benchmark) for sample in sorted(samples, key=lambda sample: sample["doc_id"]))
    if lost := [item.id for item in items if any(map(math.isnan, item.likelihoods or ()))]:
        raise CheckpointError(
            f"{planned.name}: the model gives NaN as log-likelihood of {len(lost)} of {len(items)} items, the first is "
            f"item {lost[0]}: {NAN_BECAUSE}"
        )
    return TaskResult(
        task=planned.name,
        metric=benchmark.metric,
        num_fewshot=benchmark.shots,
        seconds=time.monotonic() - started,
        items=items,
        version=planned.config.get("metadata", {}).get("version"),
        num_truncated=sum(_is_truncated(model, sample["arguments"]) for sample in samples),
    )


def answer_tokens(model: Any, task: Any) -> int:
    """How many tokens of the model's context the task keeps for the answer; 0 where choices are scored."""
    return 0 if task.OUTPUT_TYPE != "generate_until" else _max_gen_toks(model, task.config.generation_kwargs)


def _max_gen_toks(model: Any, settings: dict[str, Any]) -> int:
    from lm_eval.models.utils import normalize_gen_kwargs

    return int(normalize_gen_kwargs(settings, model.max_gen_toks)["max_gen_toks"])


def _is_truncated(model: Any, arguments: list[tuple[str, Any]]) -> bool:
    """Whether an item's longest prompt did not fit: the harness then cuts its beginning, exemplars and BOS first.

    The harness's own warnings are one for a batch, and of padded lengths, so the tokens are counted again here.
    """
    settings = arguments[0][1]
    if isinstance(settings, dict):
        longest, room = arguments[0][0], model.max_length - _max_gen_toks(model, settings)
    else:  # prompt and choice; the last token is predicted and never read
        longest, room = max((prompt + choice for prompt, choice in arguments), key=len), model.max_length + 1
    return bool(len(model.tok_encode(longest)) > room)


def _item(sample: dict[str, Any], benchmark: Benchmark) -> Item:
    likelihoods: tuple[float, ...] | None = None
    first = sample["filtered_resps"][0]
    if isinstance(first, str):
        answer = first
    else:
        likelihoods = tuple(float(response[0]) for response in sample["filtered_resps"])
        chosen = max(range(len(likelihoods)), key=likelihoods.__getitem__)
        answer = str(sample["arguments"][chosen][1]).strip()
    metrics = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample[name], int | float)}
    return Item(
        id=int(sample["doc_id"]),
        doc_hash=sample["doc_hash"],
        prompt_hash=sample["prompt_hash"],
        target=str(sample["target"])[:ANSWER_CHARACTERS],
        answer=answer[:ANSWER_CHARACTERS],
        score=float(sample[benchmark.metric]),
        metrics=metrics,
        likelihoods=likelihoods,
    )


def harness_folder(name: str) -> Path:
    """Of the harness's own task files. Errors: ConfigError if it has no such folder."""
    found = find_spec("lm_eval")
    assert found is not None and found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "tasks" / name
    if not folder.is_dir():
        raise ConfigError(f"lm-evaluation-harness has no tasks/{name}")
    return folder


@cache
def _manager(folder: Path) -> Any:
    """The harness's index of one folder of task files: of all 10,000 it would take half a minute."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


def task_folder(benchmark: Benchmark) -> Path:
    """Where its task files lie."""
    return OWN_TASKS if benchmark.harness is None else harness_folder(benchmark.harness)


def _vllm(folder: Path, options: EvalOptions) -> Any:
    if find_spec("vllm") is None:
        raise ConfigError("--backend vllm: vLLM is not installed; use --backend hf")
    from lm_eval.models.vllm_causallms import VLLM

    return VLLM(pretrained=str(folder), dtype=options.dtype, batch_size="auto", trust_remote_code=False)


class _Heard:
    """Stands where the harness would write answers to its cache: counts them."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress

    def add_partial(self, attribute: str, request: Any, answer: Any) -> None:
        self._progress(1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the chatter of the harness and datasets; their errors stay."""
    import datasets

    logger = logging.getLogger("lm_eval")
    level, had_bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()


def prepare(*, offline: bool) -> None:
    """Call before the harness is imported. No variable changes a result. Errors: ConfigError naming what to install."""
    for module in ("lm_eval", "datasets"):
        if find_spec(module) is None:
            raise ConfigError(f"evaluation needs {module}, which is not installed: {INSTALL}")
    os.environ.setdefault("TQDM_DISABLE", "1")  # there is one live line, ours
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if offline:
        os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"})
