"""Converts a tree of settings to a configuration, and names everything that is wrong with it.

Owns the messages about unknown names and wrong values; must not import torch, ray or gymnasium.
"""

import difflib
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from cluster.settings.config import ConfigError, RunConfig
from cluster.settings.names import nearest, section_in
from cluster.settings.quantities import Unit, example, parsed, unit_of
from cluster.settings.tree import Tree

_Config = TypeVar("_Config", bound=RunConfig)
_EXPECTED: Mapping[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "array": "a list",
    "object": "names with values, as {name: value}",
    "null": "null",
}


def parse(tree: Tree, kind: type[_Config]) -> _Config:
    """The configuration that the tree describes. Raises ConfigError with every problem, one a line."""
    problems: list[str] = []
    config = _section(tree, tree.values, kind, kind, "", problems)
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    return typing.cast(_Config, config)


def _section(tree: Tree, values: Any, kind: type, whole: type, prefix: str, problems: list[str]) -> Any:
    """One section, or None after adding to `problems`. whole: the kind of the whole configuration."""
    name = prefix.rstrip(".")
    if values is None:
        problems.append(
            f"the section {name} is empty{_at(tree, name)}; write settings below it, or remove the line"
        )
        return None
    if not isinstance(values, Mapping):
        problems.append(f"{name} is {values!r}{_at(tree, name)}; expected a section with settings")
        return None
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    before = len(problems)
    for key, value in values.items():
        full = f"{prefix}{key}"
        if key not in hints:
            problems += _unknown(tree, full, value, list(hints), whole)
            continue
        section = section_in(hints[key])
        if section is not None and (value is not None or type(None) not in typing.get_args(hints[key])):
            found[key] = _section(tree, value, section, whole, f"{full}.", problems)
            continue
        try:
            found[key] = msgspec.convert(_read(value, hints[key], key), hints[key], strict=False)
        except msgspec.ValidationError as error:
            problems.append(_wrong(tree, full, value, hints[key], str(error)))
    if len(problems) > before:
        return None
    try:
        return kind(**found)
    except ValueError as error:  # from the section's own check, which names the setting itself
        setting, _, rest = str(error).partition(" is ")
        cause, _, cure = rest.partition("; ")
        where = _at(tree, setting)
        problems.append(f"{setting} is {cause}{where}; {cure}" if where and cure else str(error))
        return None


def _unknown(tree: Tree, name: str, value: Any, valid: list[str], whole: type) -> Iterator[str]:
    """A line for a name that is no setting, or one for each name below it if it is no section either."""
    near = difflib.get_close_matches(name, valid, n=1) if isinstance(value, Mapping) else []
    meant = near[0] if near else nearest(name, whole)
    if meant is None and isinstance(value, Mapping) and value:
        lines = [line for key in value for line in _unknown(tree, f"{name}.{key}", value[key], [], whole)]
        if any("did you mean" in line for line in lines):
            yield from lines
            return
    others = f"valid: {', '.join(valid)}" if valid else "qfleet settings lists those that are"
    hint = f"did you mean {meant}?" if meant else others
    yield f"unknown key {name}{_at(tree, name)}; {hint}"


def _read(value: Any, hint: Any, key: str) -> Any:
    """The number that a text means, where a number is expected; else the value as it is."""
    if isinstance(value, str) and _numeric(hint):
        number = parsed(value, unit_of(key))
        return value if number is None else number
    return value


def _numeric(hint: Any) -> bool:
    return bool({int, float} & {hint, *typing.get_args(hint)})


def _wrong(tree: Tree, name: str, value: Any, hint: Any, message: str) -> str:
    """Name, value and place of a wrong value, and what is expected there."""
    text, _, path = message.rstrip("`").partition("`$")
    index = path if path.startswith("[") else ""
    choices = [each for option in (hint, *typing.get_args(hint)) for each in _choices(option)]
    unit: Unit = unit_of(name)
    if _numeric(hint) and not index and isinstance(value, str):
        cure = f"give {example(unit)}"
        cure = " or ".join([cure, *choices]) if choices else cure
    elif choices and typing.get_origin(hint) is tuple and not index:
        cure = f"give a list of {', '.join(choices)}, such as [{choices[0]}]"
    elif choices:
        cure = f"give one of {', '.join(choices)}"
    else:
        cure = _in_words(text, value)
    if isinstance(value, list) and (place := re.fullmatch(r"\[(\d+)\]", index)):
        value = value[int(place[1])]
    return f"{name}{index} is {value!r}{_at(tree, name)}; {cure}"


def _choices(hint: Any) -> tuple[str, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _in_words(message: str, value: Any) -> str:
    """What msgspec expects: it says "Expected `int | null`, got `str`"."""
    expected = message.partition("Expected ")[2].partition(", got")[0]
    if not expected.startswith("`"):
        return message.lower()
    kinds, length = expected.strip("`").partition("`")[::2]
    words = " or ".join(_EXPECTED.get(kind, kind) for kind in kinds.split(" | "))
    if value is None:
        return f"null is not allowed here, give {words}"
    return f"give {words}{length.replace('`', '')}"


def _at(tree: Tree, name: str) -> str:
    """Where a setting was written, in parentheses; nothing for --set, which shows it itself."""
    place = tree.places.get(name, "")
    return f" ({place})" if place and not place.startswith("--set") else ""
