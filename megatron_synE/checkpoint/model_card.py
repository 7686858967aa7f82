"""The README.md of an exported model: its licence and the name it must bear, data, recipe, lineage. No torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_synE.checkpoint.layout import CommonState

CARD = "README.md"
_LLAMA_3_VOCABULARY = 128256
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class BaseLicence:
    """What is known of the terms of the model that training started from."""

    identifier: str | None
    """As in the base's own card, e.g. llama3 or apache-2.0."""
    name_prefix: str | None
    """What the names of derived models must begin with."""
    notice: str | None
    """What must be shown with them."""


def base_licence(*, carried: Path, vocab_size: int) -> BaseLicence:
    """The base's terms, from its card or licence file in the folder `carried`.

    Where neither is there, the vocabulary of Llama 3 counts as Llama 3: naming a model too carefully does no harm.
    Source: Meta Llama 3 Community License 1.b.i; Llama 3.1 to 3.3 Community License 1.b.i.
    """
    identifier = _card_fields(carried / CARD).get("license")
    text = "".join(
        file.read_text(encoding="utf-8", errors="replace")[:2000]
        for file in (sorted(carried.glob("LICENSE*")) if carried.is_dir() else [])
    ).lower()
    family = identifier.lower() if isinstance(identifier, str) else None
    named = re.search(r"llama 3(?:\.(\d))? community license", text)
    if family in (None, "other") and named:
        family = "llama3" + (f".{named[1]}" if named[1] else "")
    if family in (None, "other") and vocab_size == _LLAMA_3_VOCABULARY:
        family = "llama3"
    if family == "llama3":
        return BaseLicence(identifier=family, name_prefix="Llama-3-", notice="Built with Meta Llama 3")
    if family is not None and family.startswith("llama3."):
        return BaseLicence(identifier=family, name_prefix="Llama-", notice="Built with Llama")
    return BaseLicence(identifier=family, name_prefix=None, notice=None)


def model_card(
    *, name: str, config: Mapping[str, Any], state: CommonState | None, manifest: Mapping[str, Any], carried: Path
) -> str:
    """The card. carried: the folder with the base's own card and licence files. state: None for foreign checkpoints."""
    licence = base_licence(carried=carried, vocab_size=int(config["vocab_size"]))
    prefix = licence.name_prefix or ""
    title = name if name.lower().startswith(prefix.lower()) else prefix + name
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if licence.identifier:
        front["license"] = licence.identifier
    tags = ["llama", "continual-pre-training"]
    front_text = yaml.safe_dump({**front, "tags": tags}, sort_keys=False, allow_unicode=True)
    lines = [f"---\n{front_text}---", f"# {title}", ""]
    if licence.notice:
        lines += [f"**{licence.notice}.**", ""]
    lines += ["## Licence", "", _licence_text(licence), ""]
    lines += ["## Training", "", *_training_lines(state), ""]
    lines += ["## Data", "", *_data_lines(state), ""]
    lines += ["## Lineage", "", *_lineage_lines(state, manifest), ""]
    return "\n".join(lines)


def _licence_text(licence: BaseLicence) -> str:
    if licence.identifier is None:
        return "The base model named no licence; find out before you pass this model on."
    text = f"The base model is under `{licence.identifier}`; the same terms hold for this model."
    if licence.name_prefix:
        text += f" They ask for a name that begins with “{licence.name_prefix.rstrip('-')}” and for the notice above."
    return text


def _training_lines(state: CommonState | None) -> list[str]:
    if state is None:
        return ["Converted from a Megatron-LM checkpoint; it does not say how it was trained."]
    if state.iteration == 0:
        return ["The base model's weights, not trained further."]
    return [
        "Continual pre-training with Megatron-SynE on megatron-core.",
        "",
        f"- optimizer steps: {state.iteration:,}",
        f"- tokens: {state.consumed_tokens:,}",
        f"- weights: {state.weights_dtype}",
    ]


def _data_lines(state: CommonState | None) -> list[str]:
    schedule = _schedule(state)
    if not schedule:
        return ["None recorded."]
    lines = ["| phase | sequences | mixture |", "|---|---|---|"]
    for phase in schedule.get("phases", []):
        weights = dict(phase["weights"])
        total = sum(weights.values()) or 1
        mixture = ", ".join(f"{source} {weight / total:.1%}" for source, weight in weights.items())
        lines.append(f"| {phase['name']} | {phase['num_samples']:,} | {mixture} |")
    return [*lines, "", f"Sequence length {schedule.get('seq_length')}, seed {schedule.get('seed')}."]


def _lineage_lines(state: CommonState | None, manifest: Mapping[str, Any]) -> list[str]:
    facts = {
        "checkpoint lineage hash": manifest.get("lineage_hash"),
        "parent lineage hash": manifest.get("parent_lineage_hash"),
        "data schedule hash": state.schedule_hash if state else None,
        "tokenizer digest": state.tokenizer_digest if state else None,
    }
    return [f"- {name}: `{value}`" for name, value in facts.items() if value] or ["None recorded."]


def _schedule(state: CommonState | None) -> dict[str, Any]:
    """The schedule as plain JSON; the trainer keeps its canonical text under "json"."""
    if state is None or state.schedule is None:
        return {}
    text = state.schedule.get("json")
    return json.loads(text) if isinstance(text, str) else dict(state.schedule)


def _card_fields(card: Path) -> dict[str, Any]:
    """The YAML front matter of a model card; empty if there is none that can be read."""
    try:
        match = _FRONT_MATTER.match(card.read_text(encoding="utf-8"))
        fields = yaml.safe_load(match[1]) if match else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return fields if isinstance(fields, dict) else {}
