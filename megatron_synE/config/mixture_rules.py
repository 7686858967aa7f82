"""The rules of the mixture: what controller and guard need before they can decide anything."""

from collections.abc import Iterator, Sequence

from data_mixers.errors import ConfigError
from data_mixers.manifest import DatasetManifest, SourceEntry
from data_mixers.ratios import stage_weights
from megatron_synE.config.derive import controller_settings, guard_settings
from megatron_synE.config.fault import Fault
from megatron_synE.config.schema import RunConfig
from megatron_synE.data.build_schedule import known_at
from megatron_synE.data.probe import Probe


def controller_rules(config: RunConfig) -> Iterator[Fault]:
    """The closed loop needs held-out losses, and settings that fit together."""
    section = config.mixture
    try:
        controller_settings(section)
    except ConfigError as error:
        yield Fault("mixture.settings", str(error), "see docs/mixer.md")
    if section.controller == "static":
        return
    names = [stage.name for stage in config.data.stages]
    if unknown := [name for name in section.stages or () if name not in names]:
        yield Fault("mixture.stages", f"{', '.join(unknown)} is no stage of data.stages", f"stages: {', '.join(names)}")
    if section.reweight_interval_tokens is None:
        yield Fault(
            "mixture.reweight_interval_tokens",
            f"controller={section.controller} moves topics, but nothing says how often",
            "set it (ours: 4e9 of 100e9 tokens), or controller=static",
        )
    elif (
        config.validation.interval_tokens is None
        or section.reweight_interval_tokens % config.validation.interval_tokens
    ):
        yield Fault(
            "mixture.reweight_interval_tokens",
            f"{section.reweight_interval_tokens} is not a multiple of validation.interval_tokens="
            f"{config.validation.interval_tokens}: a decision needs the losses of its own iteration",
            "make it one",
        )
    if not config.validation.manifests:
        yield Fault(
            "validation.manifests",
            f"empty, but controller={section.controller} decides by held-out losses",
            "preprocess with --holdout N and name the manifest",
        )


def guard_rules(
    config: RunConfig, validation_manifests: Sequence[DatasetManifest] | None, probe: Probe | None
) -> Iterator[Fault]:
    """The guard needs something to look at and, to raise a share, something to take it from.

    validation_manifests, probe: None where they are not looked at.
    """
    section = config.mixture.guard
    try:
        guard_settings(section)
    except ConfigError as error:
        yield Fault("mixture.guard", str(error), "see docs/mixer.md")
        return
    if section.probe is not None and not config.validation.manifests:
        yield Fault(
            "mixture.guard.probe", "is scored inside validation, but validation.manifests is empty",
            "name a held-out set, or remove the probe",
        )  # fmt: skip
    if probe is not None:
        yield from _probe(config, probe, validation_manifests or ())
    if section.action == "warn":
        return
    held_out = {s.language for m in validation_manifests or () for s in m.sources if s.role == "validation"}
    if validation_manifests is not None and section.probe is None and section.language not in held_out:
        yield Fault(
            "mixture.guard.language",
            f"{section.language} has no held-out set in validation.manifests and no probe, so nothing says when it is"
            " worse",
            f"languages held out: {', '.join(sorted(held_out)) or 'none'}; preprocess with --holdout N, or action=warn",
        )
    if config.validation.interval_tokens is None:
        yield Fault(
            "validation.interval_tokens", "missing, but mixture.guard.action=raise decides at each validation",
            "set it (ours: 2e9 of 100e9 tokens), or action=warn",
        )  # fmt: skip
    yield from _room_to_raise(config)


def _room_to_raise(config: RunConfig) -> Iterator[Fault]:
    section = config.mixture.guard
    shares = [stage.languages.get(section.language, 0.0) for stage in config.data.stages]
    if not any(0 < share < 1 for share in shares):
        yield Fault(
            "mixture.guard.language",
            f"no stage reads {section.language} beside another language, so its share cannot rise",
            "name a language of data.stages, or action=warn",
        )
    for index, share in enumerate(shares):
        if 0 < share < 1 and share + section.max_rise >= 1:
            yield Fault(
                "mixture.guard.max_rise",
                f"{section.max_rise} on top of data.stages.{index}.languages.{section.language}={share} would leave the"
                " other languages nothing",
                f"use less than {1 - share:g}",
            )


def _probe(config: RunConfig, probe: Probe, manifests: Sequence[DatasetManifest]) -> Iterator[Fault]:
    section = config.mixture.guard
    if probe.language != section.language:
        yield Fault(
            "mixture.guard.probe", f"{section.probe} is of language {probe.language}, the guard is of"
            f" {section.language}", f"set mixture.guard.language={probe.language}, or name another probe",
        )  # fmt: skip
    if any(probe.tokenizer.digest != manifest.tokenizer.digest for manifest in manifests):
        yield Fault(
            "mixture.guard.probe", f"{section.probe} was made with another tokenizer than {manifests[0].folder}",
            "run `syne data probe` again with the model's own tokenizer",
        )  # fmt: skip
    if probe.longest > config.training.seq_length + 1:
        yield Fault(
            "mixture.guard.probe",
            f"{section.probe} has a choice of {probe.longest} tokens, more than training.seq_length ="
            f" {config.training.seq_length} can score in one piece",
            "leave long items out",
        )


def share_rules(config: RunConfig, manifests: Sequence[DatasetManifest]) -> Iterator[Fault]:
    """Every name that divides tokens has training data in the stage that uses it."""
    for index, stage in enumerate(config.data.stages):
        where = f"data.stages.{index}"
        known = known_at(config.data.stages, index, manifests)
        entries = [entry for manifest in known for entry in manifest.sources]
        try:
            weights = stage_weights(stage.languages, stage.sources, stage.topics, entries, where=where)
        except ConfigError as error:
            yield Fault(where, str(error), "name data that the manifests hold")
            continue
        yield from _packed(config, [entry for entry in entries if weights.get(entry.name)])


def _packed(config: RunConfig, entries: Sequence[SourceEntry]) -> Iterator[Fault]:
    for entry in entries:
        if entry.packed_seq_length not in (None, config.training.seq_length):
            yield Fault(
                "training.seq_length",
                f"{config.training.seq_length}, but the documents of {entry.name} are packed whole into windows of"
                f" {entry.packed_seq_length}",
                f"set it to {entry.packed_seq_length}, or preprocess {entry.name} again with --seq-length"
                f" {config.training.seq_length}",
            )
