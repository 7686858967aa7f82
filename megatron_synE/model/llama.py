"""The Llama architecture as read from an HF config.json: the only model family here. No torch."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data_mixers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How inverse frequencies are stretched for long contexts (transformers' names)."""

    rope_type: Literal["llama3", "linear"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, kw_only=True)
class LlamaArchitecture:
    """Shapes and constants of one Llama model, spelt as megatron-core spells them."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    """Head dimension; need not be hidden_size / num_attention_heads."""
    vocab_size: int
    """Rows of the embedding without padding."""
    max_position_embeddings: int
    rotary_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    layernorm_epsilon: float = 1e-5
    tied: bool = False
    """Embedding and output layer share one matrix."""

    @property
    def num_parameters(self) -> int:
        """All weights, the embedding counted once when tied."""
        attention = self.hidden_size * self.kv_channels * (2 * self.num_attention_heads + 2 * self.num_query_groups)
        layer = attention + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return self.num_layers * layer + embeddings + self.hidden_size

    def padded_vocab_size(self, *, divisible_by: int, tensor_model_parallel_size: int) -> int:
        """Rows of the embedding over all TP ranks; the rows past vocab_size are masked out of the softmax."""
        multiple = divisible_by * tensor_model_parallel_size
        return -(-self.vocab_size // multiple) * multiple


def _rope_scaling(raw: dict[str, Any], *, where: str) -> RopeScaling | None:
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("llama3", "linear"):
        raise ConfigError(f"{where}: rope_scaling type {kind!r} is not supported; use llama3 or linear")
    known = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    needed = known if kind == "llama3" else {"factor"}
    missing = sorted(name for name in needed if raw.get(name) is None)
    if missing:
        raise ConfigError(f"{where}: rope_scaling lacks {', '.join(missing)}")
    values = {name: raw[name] for name in known & raw.keys() if raw[name] is not None}
    for name, value in values.items():
        if not _is_positive(value):
            raise ConfigError(f"{where}: rope_scaling.{name}={value!r} is not a number above 0")
    return RopeScaling(rope_type=kind, **values)


def _rope(config: dict[str, Any], *, where: str) -> tuple[float, RopeScaling | None]:
    """Base of the angles and how they are stretched.

    transformers 5 writes one dict, rope_parameters; 4 wrote rope_theta and rope_scaling. In a file that has both, 5
    reads rope_scaling and drops the other with its base, 4 knows the older keys alone: so they have to agree.
    """
    dicts = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)} or {"": {}}
    found = {
        key: (float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0), _rope_scaling(rope, where=where))
        for key, rope in dicts.items()
    }
    if len(set(found.values())) > 1:
        shown = " and ".join(f"{key}={rope}" for key, rope in dicts.items())
        raise ConfigError(
            f"{where}: {shown} give different angles (rope_theta={config.get('rope_theta')} outside them), and which of"
            " them counts hangs on the version of transformers; keep the one that the model was trained with"
        )
    base, scaling = next(iter(found.values()))
    outside, inside = (
        config.get("original_max_position_embeddings"),
        scaling and scaling.original_max_position_embeddings,
    )
    if scaling is not None and scaling.rope_type == "llama3" and outside not in (None, inside):
        raise ConfigError(
            f"{where}: original_max_position_embeddings is {outside} and, with the rope scaling, {inside}; transformers"
            " 5 takes the first, 4 the second; keep the one that the model was trained with"
        )
    return base, scaling


_REQUIRED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
_OPTIONAL = ("num_key_value_heads", "head_dim", "max_position_embeddings")
_BASES = ("rope_theta", "rope_parameters.rope_theta", "rope_scaling.rope_theta")


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _check_values(config: dict[str, Any], *, where: str) -> None:
    """Errors: ConfigError for a field of another kind than transformers writes; null and absent are the default."""
    for names, kind, is_right in (
        ((*_REQUIRED, *_OPTIONAL), "a whole number above 0", lambda value: type(value) is int and value > 0),
        (("rope_parameters", "rope_scaling"), "a section", lambda value: isinstance(value, dict)),
        (("rms_norm_eps", *_BASES), "a number above 0", _is_positive),
        (("tie_word_embeddings",), "true or false", lambda value: isinstance(value, bool)),
    ):
        for name in names:
            section, _, key = name.rpartition(".")
            value = ((config.get(section) or {}) if section else config).get(key)
            if value is not None and not is_right(value):
                raise ConfigError(f"{where}: {name}={value!r} is not {kind}; take the file from its source again")


def architecture_from_hf(config: dict[str, Any], *, where: str) -> LlamaArchitecture:
    """The architecture that an HF config describes.

    where: the file, for messages. Errors: ConfigError for anything that is not a plain Llama
    (other model type, biases, another activation, unknown rope scaling) instead of a silent approximation.
    """
    if config.get("model_type") != "llama":
        raise ConfigError(f"{where}: model_type={config.get('model_type')!r}; only 'llama' is supported")
    for flag in ("attention_bias", "mlp_bias"):
        if config.get(flag):
            raise ConfigError(f"{where}: {flag}=true is not a Llama-3 model; biases are not supported")
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{where}: hidden_act={config['hidden_act']!r}; only silu is supported")
    missing = [name for name in _REQUIRED if config.get(name) is None]
    if missing:
        raise ConfigError(f"{where}: lacks {', '.join(missing)}")
    _check_values(config, where=where)
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    if heads % groups:
        raise ConfigError(f"{where}: num_attention_heads={heads} is not a multiple of num_key_value_heads={groups}")
    rotary_base, rope_scaling = _rope(config, where=where)
    return LlamaArchitecture(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        max_position_embeddings=config.get("max_position_embeddings") or 2048,
        rotary_base=rotary_base,
        rope_scaling=rope_scaling,
        layernorm_epsilon=config.get("rms_norm_eps") or 1e-6,
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def read_hf_config(path: Path) -> dict[str, Any]:
    """The config.json at `path` (file or folder). Errors: ConfigError naming the file."""
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return config


def hf_config_of(architecture: LlamaArchitecture) -> dict[str, Any]:
    """An HF config for a model that did not come from one (a preset)."""
    rope: dict[str, Any] | None = None if architecture.rope_scaling is None else asdict(architecture.rope_scaling)
    if rope is not None and rope["rope_type"] == "linear":
        rope = {name: rope[name] for name in ("rope_type", "factor")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.ffn_hidden_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_attention_heads,
        "num_key_value_heads": architecture.num_query_groups,
        "head_dim": architecture.kv_channels,
        "vocab_size": architecture.vocab_size,
        "max_position_embeddings": architecture.max_position_embeddings,
        "rms_norm_eps": architecture.layernorm_epsilon,
        "rope_theta": architecture.rotary_base,
        "rope_scaling": rope,
        "tie_word_embeddings": architecture.tied,
        "attention_bias": False,
        "mlp_bias": False,
    }
