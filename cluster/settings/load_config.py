"""Reads a RunConfig from YAML files and --set overrides, and writes it as YAML.

Owns parsing and the messages about bad files and values; must not import torch, ray or gymnasium.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import yaml

from cluster.settings.config import ConfigError, RunConfig
from cluster.settings.renames import rename_settings
from cluster.settings.resolved import ResolvedConfig

_Config = TypeVar("_Config", bound=RunConfig)

_FAMILIES = {"ALE/": "atari", "MinAtar/": "minatar"}
"""Prefix of environment ids -> the preset that these environments share."""
SHARED_PRESETS = frozenset(_FAMILIES.values())
PRESETS = Path(__file__).resolve().parents[2] / "configs"


def load_config(source: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file (None: defaults) and applies overrides like "learner.batch_size=128".

    Raises:
        ConfigError: for an unreadable file, an unknown key (with the nearest valid one) or a wrong value.
    """
    tree = _read(source) if source is not None else {}
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, RunConfig)


def load_resolved(text: str) -> ResolvedConfig:
    """The config of a run, from the YAML that this version of the program or an older one saved.

    Raises:
        ConfigError: for text that is no YAML, an unknown key or a wrong value.
    """
    return parse_config(_tree(text, "the saved configuration"), ResolvedConfig)


def parse_config(tree: Mapping[str, Any], kind: type[_Config]) -> _Config:
    """Converts nested mappings to a config of this kind; raises ConfigError as load_config does."""
    _check_keys(tree, kind)
    try:
        return msgspec.convert(tree, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_readable(str(error), tree)) from None


def dump_config(config: RunConfig) -> str:
    """YAML that load_config turns into an equal RunConfig."""
    # asdict keeps the settings that equal their defaults, which msgspec may leave out.
    return yaml.safe_dump(msgspec.to_builtins(dataclasses.asdict(config)), sort_keys=False)


def preset_paths() -> dict[str, Path]:
    """Name of each preset -> its file, in alphabetical order."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def preset_for_env(env_id: str) -> Path | None:
    """The preset with this env.id (of several, the one with the shortest name), else its family's."""
    presets = preset_paths()
    families = (presets[name] for prefix, name in _FAMILIES.items() if env_id.startswith(prefix))
    exact = [path for path in presets.values() if _env_id(path) == env_id]
    return min(exact, key=lambda path: len(path.stem), default=next(families, None))


def _env_id(path: Path) -> str | None:
    env = _read(path).get("env", {})
    return env.get("id") if isinstance(env, dict) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return _tree(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        names = ", ".join(preset_paths())
        raise ConfigError(f"{path}: no such file; the presets in {PRESETS} are: {names}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _tree(text: str, name: str) -> dict[str, Any]:
    """The sections in a YAML text, under today's names. name: the source of the text, for errors."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: holds {type(tree).__name__}, expected sections such as env: and learner:")
    rename_settings(tree)
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Sets one "a.b=value" in the tree; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: write it as section.name=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from None
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override}: {parent} is {tree!r}, not a section")
    tree[leaf] = value


def _check_keys(tree: Mapping[str, Any], kind: type, prefix: str = "") -> None:
    """Refuses keys that `kind` does not have, which msgspec would ignore, and names the nearest one."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')} is {tree!r}; expected a section with names")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for key, value in tree.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"valid: {', '.join(names)}"
            raise ConfigError(f"unknown key {prefix}{key}; {hint}")
        section = _dataclass_in(hints[key])
        if section is not None and value is not None:
            _check_keys(value, section, f"{prefix}{key}.")


def _dataclass_in(hint: Any) -> type | None:
    """The section that a type hint like `LadderConfig | None` stands for; None for a plain value."""
    options = typing.get_args(hint) or (hint,)
    return next((o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), None)


def _readable(message: str, tree: Mapping[str, Any]) -> str:
    """Puts name and value first: msgspec says "Expected `int`, got `str` - at `$.learner.batch_size`"."""
    text, _, where = message.partition("$.")
    text, path = text.partition(" - at ")[0], where.rstrip("`")
    if text.startswith(f"{path}."):
        return text  # from a section's own check, which names the setting itself
    value: Any = tree
    kind: Any = RunConfig
    for name in path.split("[")[0].split("."):
        value = value[name]
        kind = typing.get_type_hints(_dataclass_in(kind) or kind)[name]
    if typing.get_origin(kind) is Literal:
        text = f"give one of {', '.join(typing.get_args(kind))}"
    return f"{path} is {value!r}: {text.replace('`', '').lower()}"
