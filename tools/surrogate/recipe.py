"""What the levels of a recipe factor set in a run: a share of synthetic text, wrong pairs, an order, a controller."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_mixers.errors import ConfigError
from data_mixers.manifest import read_manifest
from megatron_synE.config.examine import manifest_paths
from megatron_synE.config.load import Tree, load_config, resolved_tree
from megatron_synE.config.schema import RunConfig, StageSection
from tools.surrogate.study import Level, Study


def overrides_of(study: Study, levels: Mapping[str, Level], variants: Mapping[Level, Path]) -> list[str]:
    """Overrides of the base run for these levels, in the order of the grid: each factor sees what those before it set.

    variants: token folder of each level of `corruption`.
    Errors: ConfigError for levels that the base cannot take.
    """
    overrides = [_assigned(key, value) for key, value in study.set.items()]
    for factor, level in levels.items():
        described = study.grid[factor]
        if isinstance(described, dict):
            overrides += [_assigned(key, value) for key, value in described[str(level)].items()]
        elif factor == "synthetic_share":
            overrides.append(_synthetic_share(study, overrides, float(level)))
        elif factor == "corruption":
            overrides.append(_corruption(study, overrides, variants.get(level)))
        elif factor == "order":
            overrides.append(_order(study, overrides, str(level)))
        elif factor == "controller":
            overrides.append(f"mixture.controller={level}")
        else:
            overrides.append(_assigned(factor, level))
    return overrides


def _synthetic_share(study: Study, overrides: Sequence[str], share: float) -> str:
    stage, synthetic = study.synthetic.stage, study.synthetic.language
    languages = _stage(study, overrides, stage).languages
    others = {language: value for language, value in languages.items() if language != synthetic and value > 0}
    if not others:
        raise ConfigError(f"data.stages.{stage}.languages: {synthetic} is all there is; nothing can make room")
    total = sum(others.values())
    kept = {language: value / total * (1 - share) for language, value in others.items()}
    if share > 0:
        kept[synthetic] = share
    return _assigned(f"data.stages.{stage}.languages", kept)


def _corruption(study: Study, overrides: Sequence[str], folder: Path | None) -> str:
    manifests = [str(path) for path in load_config(study.base, overrides).resolved.data.manifests]
    return _assigned("data.manifests", manifests if folder is None else [*manifests, str(folder)])


def _order(study: Study, overrides: Sequence[str], order: str) -> str:
    number, languages = study.order.stage, study.order.languages
    if order != "by_topic":
        return _assigned(f"data.stages.{number}.curriculum", {"pacing": order, "languages": list(languages)})
    config = load_config(study.base, overrides).resolved
    stages = resolved_tree(config)["data"]["stages"]
    _stage(study, overrides, number)
    return _assigned(
        "data.stages", [*stages[:number], *_by_topic(study, config, stages[number]), *stages[number + 1 :]]
    )


def _by_topic(study: Study, config: RunConfig, stage: Tree) -> Iterator[Tree]:
    """The stage as one after another, each with one topic of the ordered languages, as long as the topic has text."""
    sizes: dict[str, Counter[tuple[str, str]]] = {}
    for manifest in map(read_manifest, manifest_paths(config)):
        for entry in manifest.with_role("train"):
            if entry.language in study.order.languages:
                sizes.setdefault(entry.topic, Counter())[entry.language, entry.source] += entry.num_tokens
    topics = list(study.order.topics or sorted(sizes))
    if missing := [topic for topic in topics if topic not in sizes]:
        raise ConfigError(f"order.topics: {missing[0]!r} is no topic of {', '.join(study.order.languages)}")
    if len(topics) < 2:
        raise ConfigError(f"order: by_topic needs two topics of {', '.join(study.order.languages)}, there are {topics}")
    # Each stage is a whole number of batches: rounded one by one, this arm would read more than the others.
    batch = config.training.global_batch_size * config.training.seq_length
    num_batches = -(-stage["tokens"] // batch)
    total, read, before = sum(sizes[topic].total() for topic in topics), 0, 0
    for topic in topics:
        read += sizes[topic].total()
        upto = round(num_batches * read / total)
        tokens, before = (upto - before) * batch, upto
        if tokens == 0:
            raise ConfigError(
                f"order: by_topic leaves less than a batch of {batch} tokens for {topic}; read more tokens"
            )
        shares = _shares_of_sources(sizes[topic])
        only = {language: {source: {topic: 1.0} for source in sources} for language, sources in shares.items()}
        yield stage | {
            "name": f"{stage['name']}, {topic}", "tokens": tokens, "curriculum": None,
            "sources": stage["sources"] | shares, "topics": stage["topics"] | only,
        }  # fmt: skip


def _shares_of_sources(sizes: Counter[tuple[str, str]]) -> dict[str, dict[str, float]]:
    totals: Counter[str] = Counter()
    for (language, _), size in sizes.items():
        totals[language] += size
    shares: dict[str, dict[str, float]] = {}
    for (language, source), size in sizes.items():
        shares.setdefault(language, {})[source] = size / totals[language]
    return shares


def _stage(study: Study, overrides: Sequence[str], number: int) -> StageSection:
    stages = load_config(study.base, overrides).resolved.data.stages
    if number >= len(stages):
        raise ConfigError(f"data.stages: there is no stage {number}, only {len(stages)}")
    return stages[number]


def _assigned(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value)}"
