"""Reads settings as a tree of names and values, and remembers where each was written.

Owns YAML, its pitfalls, and the messages about texts that hold no settings; must not import torch, ray or
gymnasium.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.settings.config import ConfigError

_NUMBERS: Mapping[str, str] = {
    "int": r"[-+]?(0x[0-9a-fA-F]+|0b[01]+|[0-9][0-9_]*)$",
    "float": r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|"
    r"[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
}
"""The texts without quotes that are numbers, as in YAML 1.2; none is a date. PyYAML follows YAML 1.1, in
which 1e-3 is a text, 010 is eight, 12:30 is 750 and 2020-01-01 no text: an environment would get them so."""


class _Loader(yaml.SafeLoader):
    """Reads settings, with the numbers of YAML 1.2."""


class _Dumper(yaml.SafeDumper):
    """Writes settings so that they are read as they were: a text that looks like a number is in quotes."""


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text) if text.lstrip("+-").isdecimal() else loader.construct_yaml_int(node)


_TAGS = {f"tag:yaml.org,2002:{name}": re.compile(pattern) for name, pattern in _NUMBERS.items()}
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in _TAGS and tag != "tag:yaml.org,2002:timestamp"
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _TAGS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, _pattern, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


@dataclass(frozen=True)
class Tree:
    """values: section -> settings. places: full name of a setting -> where it was written, for messages."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def put(self, override: str) -> None:
        """Sets one "section.name=value"; the value is read as YAML. Raises ConfigError."""
        name, equals, text = override.partition("=")
        name, place = name.strip(), f"--set {override}"
        if not equals or not name:
            raise ConfigError(f"{place}: write it as section.name=value")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{place}: the value is not valid YAML: {_short(error)}") from None
        *parents, leaf = name.split(".")
        settings = self.values
        for parent in parents:
            if settings.get(parent) is None:
                settings[parent] = {}
            settings = settings[parent]
            if not isinstance(settings, dict):
                raise ConfigError(f"{place}: {parent} is {settings!r}, not a section")
        settings[leaf] = value
        self.places[name] = place

    def above(self, base: "Tree") -> "Tree":
        """This tree's settings, and those of `base` where this one has none."""
        values = {name: dict(part) if isinstance(part, dict) else part for name, part in base.values.items()}
        for name, part in self.values.items():
            if isinstance(part, dict) and isinstance(values.get(name), dict):
                merged = values[name] | part
                # Arguments of an environment are merged one by one, so that --set may add one.
                if isinstance(part.get("kwargs"), dict) and isinstance(values[name].get("kwargs"), dict):
                    merged["kwargs"] = values[name]["kwargs"] | part["kwargs"]
                values[name] = merged
            else:
                values[name] = part
        return Tree(values, base.places | self.places)


def in_yaml(value: object, *, flow: bool = False) -> str:
    """Numbers, texts, lists and dicts as YAML that is read as they are. flow: in brackets, as in JSON."""
    width = math.inf if flow else None
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=width)


def read_file(path: Path) -> Tree:
    """The settings in a file. Raises ConfigError, OSError or UnicodeDecodeError."""
    return read_text(path.read_text(encoding="utf-8"), str(path))


def read_text(text: str, name: str) -> Tree:
    """The settings in a YAML text. name: of its source. Raises ConfigError."""
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # characters that no YAML may have
        raise ConfigError(f"{name}: not valid YAML: {_short(error)}") from None
    try:
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(
                f"{name} is empty; write settings such as `env: {{id: CartPole-v1}}`, or train without a file"
            )
        places = dict(_places(node, name, ""))
        values = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {_short(error)}") from None
    except RecursionError:
        raise ConfigError(f"{name}: a part of it contains itself") from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise ConfigError(
            f"{name}: holds {_kind(values)}, expected sections such as `env:` and `learner:` with settings"
        )
    return Tree(values, places)


def _places(node: yaml.Node, source: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Full name of each key below a node, with file and line. Raises ConfigError for one that is twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if name in lines and key.value != "<<":
            raise ConfigError(
                f"{source}, line {line}: {name} stands twice, first in line {lines[name]}; remove one"
            )
        lines[name] = line
        yield name, f"{source}, line {line}"
        yield from _places(value, source, f"{name}.")


def _short(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return f"{problem or str(error).splitlines()[0]}{where}"


def _kind(value: object) -> str:
    names: Mapping[type, str] = {list: "a list", str: "a text", bool: "one value", int: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")
