"""`syne data stats`: tokens, documents, lengths and PPL per source, as a table, as JSON, and as a figure."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.columns import aligned
from tools.data.described import DescribedSource, Numbers, describe
from tools.data.scores_file import DEFAULT_NAME

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
PPL_BINS_PER_DECADE = 10
PPL_DECADES = 5  # the last bin takes what is above 100,000


@dataclass(frozen=True, kw_only=True)
class SourceStats:
    name: str
    topic: str | None
    role: str
    num_documents: int
    """Without EOS that fills up windows of whole documents, which is among the tokens alone."""
    num_tokens: int
    text_bytes: int | None
    """None without documents.parquet."""
    length_quantiles: tuple[float, ...] | None
    """Tokens per document, EOS included, at QUANTILES; None without a document."""
    longest: int
    num_scored: int | None
    """Documents with a PPL; None without scores."""
    ppl_quantiles: tuple[float, ...] | None
    """Of documents, at QUANTILES."""
    ppl: float | None
    """exp(NLL of all scored tokens / their number): the tokens after each document's first, EOS included."""
    bits_per_byte: float | None
    """The same NLL against the text's bytes: comparable between languages."""
    ppl_histogram: tuple[int, ...] | None
    """Documents per bin of PPL_EDGES."""
    missing: tuple[str, ...]
    """Files that are not there, one of each kind."""


PPL_EDGES: tuple[float, ...] = tuple(
    10 ** (number / PPL_BINS_PER_DECADE) for number in range(PPL_BINS_PER_DECADE * PPL_DECADES + 1)
)


def stats(folder: Path, *, scores_name: str = DEFAULT_NAME) -> list[SourceStats]:
    """Per source of the folder, in the manifest's order.

    Memory: about 100 bytes a document of one source at a time.
    Errors: DataError for a folder without token files, or companions that do not fit.
    """
    left = list(reversed(describe(folder, scores_name=scores_name)[0]))
    found = []
    while left:
        found.append(_of_source(left.pop()))  # a source keeps what was read of it, and its files open: let it go
    return found


def _of_source(source: DescribedSource) -> SourceStats:
    lengths = np.concatenate([np.diff(shard.starts)[shard.is_text] for shard in source.shards])
    kinds = zip(*((shard.documents_path, shard.scores_path) for shard in source.shards), strict=True)
    missing = [names[0] for paths in kinds if (names := [path.name for path in paths if not path.is_file()])]
    sizes = [shard.text_bytes for shard in source.shards]
    known = [size for size in sizes if size is not None]
    text_bytes = int(np.concatenate(known).sum()) if len(known) == len(sizes) else None
    are_text = [shard.is_text for shard in source.shards]
    ppls, nlls = [shard.ppl for shard in source.shards], [shard.nll for shard in source.shards]
    texts = [ppl[is_text] for ppl, is_text in zip(ppls, are_text, strict=True) if ppl is not None]
    scored = [ppl[~np.isnan(ppl)] for ppl in texts]
    has_scores = len(scored) == len(source.shards)
    ppl = np.concatenate(scored) if has_scores else np.zeros(0)
    nll_sum, nll_tokens = (
        sum(float(np.sum(nll[column][is_text])) for nll, is_text in zip(nlls, are_text, strict=True) if nll is not None)
        for column in (0, 1)
    )
    counts, _ = np.histogram(np.clip(ppl, PPL_EDGES[0], PPL_EDGES[-1]), bins=np.array(PPL_EDGES))
    return SourceStats(
        name=source.name,
        topic=source.topic,
        role=source.role,
        num_documents=len(lengths),
        num_tokens=sum(int(shard.starts[-1]) for shard in source.shards),
        text_bytes=text_bytes,
        length_quantiles=_quantiles(lengths.astype(np.float64)),
        longest=int(lengths.max(initial=0)),
        num_scored=len(ppl) if has_scores else None,
        ppl_quantiles=_quantiles(ppl),
        ppl=math.exp(min(700.0, nll_sum / nll_tokens)) if has_scores and nll_tokens else None,
        bits_per_byte=nll_sum / math.log(2) / text_bytes if has_scores and text_bytes and nll_tokens else None,
        ppl_histogram=tuple(counts.tolist()) if has_scores else None,
        missing=tuple(missing),
    )


def _quantiles(values: Numbers) -> tuple[float, ...] | None:
    return tuple(float(value) for value in np.quantile(values, QUANTILES)) if len(values) else None


def table(found: list[SourceStats]) -> str:
    """One line a source, then what is missing."""
    header = ["source", "role", "documents", "tokens", "share", "length 5 %", "50 %", "95 %", "longest"]
    header += ["PPL 5 %", "50 %", "95 %", "all tokens", "bits/byte"]
    total = max(1, sum(entry.num_tokens for entry in found))
    rows = [header]
    for entry in found:
        length, ppl = entry.length_quantiles, entry.ppl_quantiles
        rows.append(
            [
                entry.name,
                entry.role,
                f"{entry.num_documents:,}",
                f"{entry.num_tokens:,}",
                f"{entry.num_tokens / total:.1%}",
                *([f"{length[place]:,.0f}" for place in (0, 2, 4)] if length else ["-"] * 3),
                f"{entry.longest:,}",
                *([f"{ppl[place]:,.2f}" for place in (0, 2, 4)] if ppl else ["-"] * 3),
                "-" if entry.ppl is None else f"{entry.ppl:,.2f}",
                "-" if entry.bits_per_byte is None else f"{entry.bits_per_byte:.3f}",
            ]
        )
    lines = [aligned(rows, num_left=2)]
    without_documents = [e.name for e in found if any(".documents." in name for name in e.missing)]
    without_scores = [e.name for e in found if any(".scores" in name for name in e.missing)]
    if without_documents:
        lines.append(
            f"no .documents.parquet, so no bytes, ids and places: {', '.join(without_documents)} (written by "
            "`syne data preprocess`)"
        )
    if without_scores:
        lines.append(f"no scores, so no PPL: {', '.join(without_scores)} (written by `syne data score-ppl`)")
    unscored = {e.name: e.num_documents - e.num_scored for e in found if e.num_scored is not None}
    if any(unscored.values()):
        shown = ", ".join(f"{name} {count:,}" for name, count in unscored.items() if count)
        lines.append(f"documents of one token, without a PPL: {shown}")
    return "\n".join(lines)
