"""From a YAML file and `key.sub=value` overrides to a RunConfig, with every fault in one message."""

import copy
import json
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from data_mixers.errors import ConfigError
from data_mixers.file_version import check_version
from megatron_synE.config.explain import explain_error, section_at
from megatron_synE.config.fault import listed
from megatron_synE.config.presets import PRESETS
from megatron_synE.config.schema import RunConfig

Tree = dict[str, Any]
"""A configuration as YAML gives it: strings, numbers, booleans, None, lists and dicts with string keys."""

OTHER_VERSION = "use the version of the program that it was written for, or write it as docs/config.md says"
_ADAPTER = TypeAdapter(RunConfig)
_OTHER_SPELLINGS = {("init", "source"): "from"}


@dataclass(frozen=True)
class LoadedConfig:
    """A run configuration, twice."""

    user: Tree
    """What was written: the file with the overrides applied, without the preset's values and without defaults."""
    resolved: RunConfig


def load_config(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """The run that `path` describes, with `key.sub=value` overrides (value is YAML; data.stages.0.tokens=1e6 works, and
    data.stages.1={...} adds a stage where there is one).

    Order: override, file, preset, default; the first that says something wins. Dicts merge, lists replace.
    Errors: one ConfigError with a line for every fault.
    """
    written = read_yaml(path)
    check_version(
        written, understood=RunConfig.schema_version, file=path, cure=OTHER_VERSION, fault=ConfigError, absent=1
    )
    faults = plain_faults(written)
    written = _unshared(written)
    assignments = [a for text in overrides if (a := _parse_override(text, faults)) is not None]
    preset = _preset_of(written, assignments)
    _rename(written, faults)
    _drop_empty_sections(written)
    for keys, value in assignments:
        _assign(written, preset, keys, value, faults)
    merged = _merged(preset, written)
    _whole_tokens(merged)
    try:
        resolved = _ADAPTER.validate_json(json.dumps(merged))
    except ValidationError as error:
        faults += [explain_error(dict(e)) for e in error.errors(include_url=False)]
    if faults:
        raise ConfigError(listed(list(dict.fromkeys(faults)), where=str(path)))
    return LoadedConfig(user=written, resolved=resolved)


def resolved_tree(config: RunConfig) -> Tree:
    """Every value of a RunConfig as plain YAML types, in the schema's spelling; loading it again gives the same run."""
    tree: Tree = _ADAPTER.dump_python(config, mode="json", by_alias=True)
    return tree


def dump_yaml(tree: Tree) -> str:
    """YAML text that `load_config` reads back to the same tree."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Text that YAML 1.1 or _Loader would take for something else stands in quotes: no, but also 3e5 and 0o17."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: 1e-5 is a float, only true/false are booleans, dates and 1:30 are text; a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                message = f"key {key_node.value!r} stands twice (lines {seen[key_node.value]} and {line})"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            seen[key_node.value] = line
        return super().construct_mapping(node, deep=deep)


# pyyaml follows YAML 1.1, where 1e-5 is text, `off` is false (wandb: off), `no` is false (a language) and 1:30 is 90.
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0x[0-9a-fA-F_]+|0o[0-7_]+|[0-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag.rpartition(":")[2] in ("null", "merge")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    # Base 0 knows 0x and 0o; a leading zero is decimal in YAML 1.2, not octal.
    return int(text, 0) if re.match(r"[-+]?0[xo]", text) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_yaml(path: Path, *, what: str = "run") -> Tree:
    """A YAML file as plain types. what: it describes, for a message. Errors: ConfigError naming file and place."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the {what}'s YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_one_line(error)}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        wanted = "sections such as `run:` and `data:`" if what == "run" else f"the {what}'s keys with their values"
        raise ConfigError(f"{path}: expected {wanted}, found a {type(tree).__name__}")
    return tree


def plain_faults(tree: Tree) -> list[str]:
    """What of a file is no plain data: a set, bytes, a key that is no text, with its place.

    Errors: ConfigError if it contains itself.
    """
    faults: list[str] = []
    _check_plain(tree, (), faults, ())
    return faults


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{problem}{where}"


def _check_plain(node: Any, loc: tuple[str | int, ...], faults: list[str], parents: tuple[int, ...]) -> None:
    """Only what JSON can say: no sets, bytes, numeric keys, or a list that contains itself."""
    where = ".".join(map(str, loc)) or "the file"
    if id(node) in parents:
        raise ConfigError(f"{where}: contains itself through a YAML alias")
    inner = (*parents, id(node))
    if isinstance(node, dict):
        for key in [key for key in node if not isinstance(key, str)]:
            faults.append(f"{where}: key {key!r} is not text; write it in quotes")
            del node[key]
        for key, value in node.items():
            _check_plain(value, (*loc, key), faults, inner)
    elif isinstance(node, list):
        for position, value in enumerate(node):
            _check_plain(value, (*loc, position), faults, inner)
    elif not isinstance(node, str | int | float | None):
        raise ConfigError(
            f"{where}: a {type(node).__name__} has no meaning here; use text, numbers, lists and sections"
        )


def _unshared(node: Any) -> Any:
    """A copy in which an anchor and its aliases are apart: an override of one place must not reach the others."""
    return json.loads(json.dumps(node))


Assignment = tuple[tuple[str, ...], Any]


def _parse_override(text: str, faults: list[str]) -> Assignment | None:
    key, equals, raw = text.partition("=")
    keys = tuple(key.strip().split("."))
    if not equals or not all(keys):
        faults.append(f"{text}: an override is written key.sub=value, e.g. optimizer.lr=1e-5")
        return None
    try:
        value = yaml.load(raw, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        faults.append(f"{key}: not valid YAML after '=': {_one_line(error)}")
        return None
    _check_plain(value, keys, faults, ())
    value = _unshared(value)
    if keys in _OTHER_SPELLINGS:
        keys = (*keys[:-1], _OTHER_SPELLINGS[keys])
    return keys, value


def _preset_of(written: Tree, assignments: list[Assignment]) -> Tree:
    name = written.get("preset")
    for keys, value in assignments:
        if keys == ("preset",):
            name = value
    # An unknown name is reported by the schema, with the names that exist.
    return copy.deepcopy(PRESETS[name]) if isinstance(name, str) and name in PRESETS else {}


def _drop_empty_sections(tree: Tree) -> None:
    """`optimizer:` with every line below it commented out is the same as no optimizer section."""
    for name in [name for name, value in tree.items() if value is None and section_at((name,)) is not None]:
        del tree[name]


def _rename(tree: Tree, faults: list[str]) -> None:
    for (section, spelling), canonical in _OTHER_SPELLINGS.items():
        inner = tree.get(section)
        if isinstance(inner, dict) and spelling in inner:
            if canonical in inner:
                faults.append(f"{section}.{spelling}: the same key as {section}.{canonical}; write it once")
            value = inner.pop(spelling)
            inner.setdefault(canonical, value)


def _assign(tree: Tree, below: Any, keys: tuple[str, ...], value: Any, faults: list[str]) -> None:
    """Set one value in `tree`; lists that only the preset (`below`) holds are copied up first, as lists replace."""
    name = ".".join(keys)
    node: Any = tree
    for depth, key in enumerate(keys):
        is_last = depth == len(keys) - 1
        if isinstance(node, list):
            if is_last and key == str(len(node)):
                node.append(None)  # one position past the end adds to the list
            if not key.isdecimal() or int(key) >= len(node):
                faults.append(f"{name}: {key!r} is not a position in a list of {len(node)}")
                return
            position: Any = int(key)
            below = None
        elif isinstance(node, dict):
            position = key
            below = below.get(key) if isinstance(below, dict) else None
            if isinstance(below, list) and key not in node and not is_last:
                node[key] = copy.deepcopy(below)
        else:
            faults.append(f"{name}: {'.'.join(keys[:depth])} is a value, not a section")
            return
        if is_last:
            node[position] = value
        elif isinstance(node, dict) and node.get(position) is None:
            node[position] = {}
        node = node[position]


def _merged(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return copy.deepcopy(above)
    merged = {key: copy.deepcopy(value) for key, value in below.items() if key not in above}
    return merged | {
        key: _merged(below[key], value) if key in below else copy.deepcopy(value) for key, value in above.items()
    }


def _whole_tokens(node: Any) -> None:
    """92.5e9 tokens is the integer 92500000000; 1.5 tokens stays as it is and is refused by the schema."""
    if isinstance(node, list):
        for value in node:
            _whole_tokens(value)
    elif isinstance(node, dict):
        for key, value in node.items():
            if "tokens" in key and isinstance(value, float) and value.is_integer():
                node[key] = int(value)
            else:
                _whole_tokens(value)
