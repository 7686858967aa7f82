"""Which topics can trade: names that nothing answers to, stages no decision reaches, loops that move nothing."""

from collections.abc import Iterator, Mapping, Sequence

from data_mixers.control_settings import idle_settings
from data_mixers.manifest import DatasetManifest, SourceEntry
from data_mixers.mixture import group_of
from data_mixers.ratios import stage_weights
from megatron_synE.config.fault import Fault
from megatron_synE.config.schema import RunConfig
from megatron_synE.data.build_schedule import known_at
from megatron_synE.data.probe import Probe

Groups = Mapping[str, frozenset[str]]
"""Group ("<language>/<source>") -> its topics that a stage reads."""


def topic_rules(config: RunConfig, manifests: Sequence[DatasetManifest]) -> Iterator[Fault]:
    """The names that a controller is given exist, and every decision fits the stages that follow.

    manifests: whose shares are right (share_rules).
    """
    if config.mixture.controller == "static":
        return
    entries = [entry for manifest in manifests for entry in manifest.sources if entry.role == "train"]
    sources = {entry.source for entry in entries}
    for name in config.mixture.sources:
        if name not in sources:
            yield Fault(
                "mixture.sources", f"{name} is no source of the manifests", f"name some of {', '.join(sorted(sources))}"
            )
    stages = [groups_of(config, index, manifests) for index in range(len(config.data.stages))]
    languages_of: dict[str, set[str]] = {}
    for entry in entries:
        if entry.source in config.mixture.sources:
            languages_of.setdefault(entry.topic, set()).add(entry.language)
    topics = {f"{language}/{topic}" for topic, languages in languages_of.items() for language in languages}
    for key in ("importance", "targets"):
        named = config.mixture.settings.get(key, {})
        for topic in named if isinstance(named, dict) else ():
            if topics and topic not in topics and topic not in languages_of:
                yield Fault(
                    f"mixture.settings.{key}", f"{topic} is no topic of {', '.join(config.mixture.sources)}",
                    f"name some of {', '.join(sorted(languages_of))}, or one language's, e.g. {min(topics)}",
                )  # fmt: skip
            elif key == "targets" and len(languages := languages_of.get(topic, ())) > 1:
                yield Fault(
                    "mixture.settings.targets",
                    f"{topic} is a topic of {' and '.join(sorted(languages))}, whose losses a token do not compare",
                    f"write {' and '.join(f'{language}/{topic}' for language in sorted(languages))}",
                )
    yield from _joining(config, stages)


def _joining(config: RunConfig, stages: Sequence[Groups]) -> Iterator[Fault]:
    """A decision of an earlier stage divides a group among the topics of that stage and knows no other."""
    for index, (stage, groups) in enumerate(zip(config.data.stages, stages, strict=True)):
        for group, topics in groups.items():
            language, source = group.split("/", 1)
            if source in stage.topics.get(language, {}):
                continue  # the stage says how they share: earlier decisions end here
            for earlier in reversed(range(index)):
                before = stages[earlier].get(group, frozenset())
                if _decides_in(config, earlier) and len(before) > 1 and topics - before:
                    yield Fault(
                        f"data.stages.{index}.topics",
                        f"{', '.join(sorted(topics - before))} of {group} is not read in stage"
                        f" {config.data.stages[earlier].name}, whose decisions give it no share",
                        f"write the shares of {group} under topics.{language}.{source} of this stage",
                    )
                    break
                if source in config.data.stages[earlier].topics.get(language, {}):
                    break


def _decides_in(config: RunConfig, index: int) -> bool:
    return config.mixture.stages is None or config.data.stages[index].name in config.mixture.stages


def groups_of(config: RunConfig, index: int, manifests: Sequence[DatasetManifest]) -> Groups:
    """What can trade in a stage. Errors: ConfigError as stage_weights."""
    stage = config.data.stages[index]
    entries: dict[str, SourceEntry] = {
        entry.name: entry
        for manifest in known_at(config.data.stages, index, manifests)
        for entry in manifest.sources
        if entry.role == "train"
    }
    weights = stage_weights(stage.languages, stage.sources, stage.topics, list(entries.values()))
    groups: dict[str, set[str]] = {}
    for name, weight in weights.items():
        if weight and entries[name].source in config.mixture.sources:
            groups.setdefault(group_of(entries[name]), set()).add(entries[name].topic)
    return {group: frozenset(topics) for group, topics in groups.items()}


def cautions(
    config: RunConfig,
    manifests: Sequence[DatasetManifest],
    validation_manifests: Sequence[DatasetManifest],
    probe: Probe | None,
) -> Iterator[str]:
    """What is no fault of a run without any, but hardly what was meant."""
    share, interval = config.validation.max_training_share, config.validation.interval_tokens
    if probe is not None and interval is not None and probe.num_tokens > share * interval:
        yield (
            f"mixture.guard.probe: its {probe.num_tokens} tokens alone are {probe.num_tokens / interval:.1%} of the"
            f" tokens between two validations, more than validation.max_training_share={share:g}; use fewer items"
        )
    mixture = config.mixture
    if idle := idle_settings(mixture.controller, mixture.settings):
        yield (
            f"mixture.settings: {', '.join(idle)} change nothing under mixture.controller={mixture.controller}; see"
            " docs/mixer.md for whose they are"
        )
    if mixture.controller == "static":
        return
    trading = {
        group: topics
        for index in range(len(config.data.stages))
        if _decides_in(config, index)
        for group, topics in groups_of(config, index, manifests).items()
        if len(topics) > 1
    }
    if not trading:
        yield (
            f"mixture.controller={mixture.controller} will move nothing: no source of mixture.sources="
            f"{list(mixture.sources)} has two topics in a stage of mixture.stages; label them (`syne data preprocess"
            " --topic-key`)"
        )
    held = {
        (entry.language, entry.topic)
        for manifest in validation_manifests
        for entry in manifest.sources
        if entry.role == "validation"
    }
    for group, topics in trading.items():
        missing = sorted(topic for topic in topics if (group.split("/", 1)[0], topic) not in held)
        if missing:
            yield (
                f"mixture.controller={mixture.controller}: topics of {group} without a held-out set keep their share:"
                f" {', '.join(missing)}; preprocess with --holdout N"
            )
    if mixture.reweight_interval_tokens is not None:
        total = sum(stage.tokens for stage in config.data.stages)
        if mixture.reweight_interval_tokens >= total:
            yield (
                f"mixture.reweight_interval_tokens={mixture.reweight_interval_tokens} is not less than the {total} "
                "tokens of the run: nothing will be decided"
            )
