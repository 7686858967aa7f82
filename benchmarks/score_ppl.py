"""`syne data score-ppl` against the forward-only rate on perfectly packed rows, and against a padded-batch loop.

Ours is the whole call on token files: reading, packing, chunks written and synced, scores joined. The forward-only rate
is the same model in the same process on rows that are full, one document of the context's length each, ready in memory,
with the same head and loss. The padded loop is transformers with SDPA in the same precision: documents in the order
they arrive, sixteen at a time, padded on the right to the longest, with an attention mask; long documents in the same
windows as ours. Speeds are scored tokens per second; what is padding or context alone counts for nobody.

The limit is the rate of the model's matrix products alone, on rows of the context's length, against the padded loop:
no scorer in this precision is faster. Where documents are alike long the loop pads little and does the same products.

python -m benchmarks.score_ppl [--pairs 8] [--padded-pairs 4] [--tokens 16000] [--seq-length 1024]
    [--precision auto] [--clock wall]
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import interleaved, ratio_of
from data_mixers.manifest import read_manifest
from megatron_synE.data.batch import MicroBatch, micro_batch
from megatron_synE.data.indexed import IndexedFile
from megatron_synE.data.scoring_rows import windows_of
from megatron_synE.model.head import linear_cross_entropy
from megatron_synE.runtime.cpu_features import cpu_has_bf16
from megatron_synE.scoring import Scorer
from tests import tiny
from tools.data import score
from tools.data.options import ScoreOptions
from tools.data.score_chunks import scorer_of
from tools.data.scores_file import scores_path

FORWARD_TARGET, PADDED_TARGET = 0.9, 3.0
SHAPE = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 16384, "tie_word_embeddings": True,
}  # fmt: skip
BATCH = 16
_now: Callable[[], float] = time.perf_counter


def length_mixes(num_tokens: int, seq_length: int) -> dict[str, list[int]]:
    """Name -> document lengths of about num_tokens in all."""
    random = np.random.default_rng(0)
    log_normal = np.exp(random.normal(5.3, 1.2, size=num_tokens)).astype(int).clip(4, 20 * seq_length)
    long = [num_tokens // 2 + 1, num_tokens - num_tokens // 2 + 1]
    equal = [256] * num_tokens
    mixes = {
        "equal (256)": equal,
        "all short (8-63)": random.integers(8, 64, size=num_tokens),
        "log-normal": log_normal,
    }
    cut = {name: lengths[: int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1] for name, lengths in mixes.items()}
    return {**{name: [int(n) for n in lengths] for name, lengths in cut.items()}, "two long": long}


def write_documents(folder: Path, lengths: list[int]) -> None:
    """Token files with these documents of random tokens, and their manifest."""
    random = np.random.default_rng(1)
    documents = [random.integers(3, SHAPE["vocab_size"], size=length).astype(np.int64) for length in lengths]
    original, tiny.documents = tiny.documents, lambda **_: documents
    try:
        tiny.manifest(folder, {("en", "web", "x"): 1}, vocab_size=SHAPE["vocab_size"])
    finally:
        tiny.documents = original


def full_rows(count: int, seq_length: int) -> list[MicroBatch]:
    """Rows of one document each, as long as the context."""
    random = torch.Generator().manual_seed(2)
    rows = []
    for _ in range(count):
        ids = torch.randint(3, SHAPE["vocab_size"], (1, seq_length + 1), generator=random)
        mask = torch.ones(1, seq_length)
        rows.append(micro_batch(ids[:, :-1], ids[:, 1:], mask, (0, seq_length), device=torch.device("cpu")))
    return rows


@torch.inference_mode()
def forward_only(scorer: Scorer, rows: list[MicroBatch]) -> float:
    """Tokens per second."""
    started = _now()
    for row in rows:
        row.row.rotary_cos = None  # worked out in every forward pass, as in a real one
        hidden = scorer._model(row.input_ids, None, None, packed_seq_params=row.row).squeeze(1)
        linear_cross_entropy(hidden, scorer._head, row.labels.squeeze(0), scorer._part).double().sum().item()
    return sum(row.input_ids.numel() for row in rows) / (_now() - started)


@torch.inference_mode()
def products_only(scorer: Scorer, *, num_rows: int, seq_length: int) -> float:
    """Tokens per second through the weights of all layers and the head: no attention, norms, loss or reading."""
    named = scorer._model.named_parameters()
    weights = [weight for name, weight in named if weight.dim() == 2 and "embedding" not in name]
    weights.append(scorer._head)
    inputs = {weight.shape[1]: torch.randn(seq_length, weight.shape[1]).to(weight.dtype) for weight in weights}
    started = _now()
    for _ in range(num_rows):
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
    return num_rows * seq_length / (_now() - started)


def whole_call(options: ScoreOptions) -> float:
    """Scored tokens per second of `syne data score-ppl` in this process, its model loaded before."""
    manifest = read_manifest(options.data)
    (shard,) = manifest.sources[0].shards
    scores_path(manifest.shard_prefix(shard), options.name).unlink(missing_ok=True)
    started = _now()
    score.score_ppl(options)
    return (shard.num_tokens - shard.num_documents) / (_now() - started)


@torch.inference_mode()
def padded_loop(model: torch.nn.Module, data: Path, *, seq_length: int, overlap: int) -> float:
    """Scored tokens per second of the usual loop."""
    manifest = read_manifest(data)
    (shard,) = manifest.sources[0].shards
    file = IndexedFile(manifest.shard_prefix(shard))
    starts = file.document_ranges().tolist()
    started = _now()
    items = []
    for start, stop in zip(starts, starts[1:], strict=False):
        for window in windows_of(0, stop - start, seq_length=seq_length, overlap=overlap):
            first = start + window.start
            items.append((file.tokens(first, first + window.num_pairs + 1), window.num_context))
    num_scored = 0
    for begin in range(0, len(items), BATCH):
        batch = items[begin : begin + BATCH]
        longest = max(len(tokens) for tokens, _ in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for index, (tokens, context) in enumerate(batch):
            row = torch.from_numpy(tokens.astype(np.int64))
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
            labels[index, 1 + context : len(row)] = row[1 + context :]
        logits = model(ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), reduction="none"
        )
        losses.view(len(batch), -1).double().sum(dim=1).tolist()
        num_scored += int((labels[:, 1:] >= 0).sum())
    return num_scored / (_now() - started)


def main() -> None:
    parser = parser_of(__doc__, pairs=8, padded_pairs=4, tokens=16_000, seq_length=1024)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's own seconds, on a busy machine"
    )
    asked = parser.parse_args()
    if asked.clock == "cpu":
        global _now
        _now = time.process_time
    from transformers import AutoModelForCausalLM

    precision = asked.precision if asked.precision != "auto" else "bf16" if cpu_has_bf16() else "fp32"
    with tempfile.TemporaryDirectory() as temporary, Record("score_ppl", keep=asked.record) as record:
        root = Path(temporary)
        hf = tiny.hf_folder(root / "hf", dtype=torch.bfloat16, **SHAPE)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        theirs = AutoModelForCausalLM.from_pretrained(hf, dtype=dtype, attn_implementation="sdpa").eval()
        setting = f"{precision}, {torch.get_num_threads()} threads, {asked.clock} clock"
        rows = full_rows(-(-asked.tokens // asked.seq_length), asked.seq_length)
        for number, (mix, lengths) in enumerate(length_mixes(asked.tokens, asked.seq_length).items()):
            data = root / f"data{number}"
            write_documents(data, lengths)
            options = ScoreOptions(data=data, hf=hf, seq_length=asked.seq_length, precision=precision, device="cpu")
            whole_call(options)  # loads the model
            scorer = _loaded(options)
            ours = partial(whole_call, options)
            pairs = interleaved(ours, partial(forward_only, scorer, rows), num_pairs=asked.pairs)
            what = f"`syne data score-ppl` to the forward-only rate on full rows of {asked.seq_length:,} tokens, {mix}"
            note = f"{len(lengths)} documents, {np.median([p[0] for p in pairs]):.0f} scored tokens/s, {setting}"
            record.add(Figure.of(what, ratio_of(pairs), target=FORWARD_TARGET, note=note))
            overlap = asked.seq_length // 16
            loop = partial(padded_loop, theirs, data, seq_length=asked.seq_length, overlap=overlap)
            padded = interleaved(ours, loop, num_pairs=asked.padded_pairs)
            record.add(Figure.of(f"… to a padded batch loop, {mix}", ratio_of(padded), target=PADDED_TARGET))
            products = partial(products_only, scorer, num_rows=len(rows), seq_length=asked.seq_length)
            limit = ratio_of(interleaved(products, loop, num_pairs=asked.padded_pairs))
            record.add(Figure.of(f"… the limit: matrix products alone to the padded loop, {mix}", limit))


def _loaded(options: ScoreOptions) -> Scorer:
    """The model that the call has left in this process."""
    settings, _ = score._settings(options, read_manifest(options.data))
    return scorer_of(settings)


if __name__ == "__main__":
    main()
