"""`syne data label-topics`: documents in, the same documents with `topic` and `topic_confidence` out, in their order.

a piece of input ─ up to CHUNK documents ─ ids ─ batches sorted by length ─ topics, back in order ─> .jsonl.zst
"""

from collections import Counter
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_mixers.errors import DataError
from tools.data.calls import Call
from tools.data.documents import CONFIDENCE_KEY, TOPIC_KEY, DocumentWriter, TaskDocuments, output_name
from tools.data.download import sha256_of
from tools.data.options import LabelOptions
from tools.data.quarantine import bad_lines
from tools.data.readers import InputTask
from tools.data.stage import Report, only_one

if TYPE_CHECKING:
    from tools.data.topic_model import Trained

CHUNK = 4096  # documents sorted together: enough that a batch's lengths hardly differ, few enough for any memory
DIGITS = 4  # of the confidence


def label_topics(options: LabelOptions) -> dict[str, int]:
    """Topic -> documents. Writes <out>/<task>-<source>.jsonl.zst per piece of input, and beside it what is no document.

    The result does not depend on the number of workers, and a killed call goes on when it is run again.
    Errors: DataError for a damaged classifier or input, or too many bad lines; ConfigError for a device that is not
    there, or another call's result in <out>.
    """
    from megatron_synE.runtime.device import select

    here = options.device if options.array is None else "cpu"  # a login node has no GPU
    select(here, local_rank=0)
    _open(options.classifier, here)  # a fault shows before any work
    call = Call.of("label-topics", options, _deciding(options))
    tasks = call.tasks
    with only_one(options.out):
        if (done := call.take(writes=True)) is not None:
            return dict(done["topics"])
        results = call.run("label-topics", partial(_label_task, options, tasks))
        if _deciding(options) != call.options:
            raise DataError(
                f"{options.classifier} has changed since this call began; remove {options.out} and start again"
            )
        bad = bad_lines(tasks, [(result["num_lines"], result["bad"]) for result in results])
        num_documents = sum(result["num_documents"] for result in results)
        call.check_bad_share(bad, num_documents, options)
        counts: Counter[str] = Counter()
        for result in results:
            counts.update(result["topics"])
        call.finish({"num_documents": num_documents, "topics": dict(sorted(counts.items()))}, bad, writes=True)
    return dict(counts)


def _deciding(options: LabelOptions) -> dict[str, Any]:
    """All that decides the result besides the input: the classifier by content."""
    from tools.data.topic_model import SETTINGS, TOKENIZER, WEIGHTS

    hashes = {name: sha256_of(options.classifier / name) for name in (WEIGHTS, TOKENIZER, SETTINGS)}
    return {
        "classifier": hashes, "text_key": options.text_key, "threshold": options.threshold, "device": options.device,
    }  # fmt: skip


@cache
def _open(classifier: Path, device: str) -> "Trained":
    from tools.data.topic_model import load_classifier

    return load_classifier(classifier, device=device)


def _label_task(options: LabelOptions, tasks: list[InputTask], index: int, report: Report) -> dict[str, Any]:
    import torch

    trained = _open(options.classifier, options.device)
    threads = torch.get_num_threads()
    # One thread a worker: the last digit of a sum depends on their number, and a label must not.
    torch.set_num_threads(1)
    topics: Counter[str] = Counter()
    found = TaskDocuments(tasks[index], text_key=options.text_key, on_bytes=report)
    documents = iter(found)
    try:
        with DocumentWriter(options.out / output_name(tasks[index], index)) as writer:
            while chunk := list(islice(documents, CHUNK)):
                labels = _label([document.text for document in chunk], trained, options)
                for document, (topic, confidence) in zip(chunk, labels, strict=True):
                    writer.write(document.fields | {TOPIC_KEY: topic, CONFIDENCE_KEY: round(confidence, DIGITS)})
                    topics[topic] += 1
    finally:
        torch.set_num_threads(threads)
    return {
        "num_documents": writer.num_documents, "topics": dict(topics), "num_lines": found.num_lines, "bad": found.bad,
    }  # fmt: skip


def _label(texts: list[str], trained: "Trained", options: LabelOptions) -> list[tuple[str, float]]:
    from tools.data.topic_metrics import softmax
    from tools.data.topic_model import label_of, predict_logits, tokenise

    rows = tokenise(trained.tokenizer, texts, max_length=trained.max_length)
    logits = predict_logits(trained.model, rows, device=options.device).double().numpy()
    threshold = trained.threshold if options.threshold is None else options.threshold
    probabilities = softmax(logits, temperature=trained.temperature)
    return [label_of(row, trained.labels, threshold=threshold) for row in probabilities.tolist()]
