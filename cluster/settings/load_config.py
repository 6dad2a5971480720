"""Finds the settings of a run: those of a file, or of an environment and its preset, and --set overrides.

Owns the presets and the order in which settings win; must not import torch, ray or gymnasium.
"""

import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from actors.config import import_path
from cluster.settings.config import ConfigError, RunConfig
from cluster.settings.parse import parse
from cluster.settings.presets import presets_folder
from cluster.settings.renames import rename_settings
from cluster.settings.resolved import ResolvedConfig
from cluster.settings.tree import Tree, in_yaml, read_file, read_text

_Config = TypeVar("_Config", bound=RunConfig)

_FAMILIES = {"ALE/": "atari", "MinAtar/": "minatar"}
"""Prefix of environment ids -> the preset that these environments share."""
PRESETS = presets_folder()


def load_config(
    source: Path | str | Callable[..., Any] | None = None, overrides: Sequence[str] = ()
) -> RunConfig:
    """The settings that `source` names, with overrides like "learner.batch_size=128".

    An environment's preset lies below everything that is given, unless run.preset says otherwise. A file is
    taken as it stands: it gets a preset only if it names one as run.preset.

    Args:
        source: a YAML file, an environment id, "package.module:factory", or the factory itself, a class or
            function at the top of a module; None: the defaults, or the environment that an override of env.id
            names.

    Raises:
        ConfigError: with every unreadable file, unknown key (with the nearest valid one) or wrong value.
    """
    if callable(source):
        source = _named(source)
    tree, is_file = Tree(), isinstance(source, Path) or str(source).lower().endswith((".yaml", ".yml"))
    if is_file:
        tree = _read(Path(str(source)))
    elif source is not None:
        _refuse_other(str(source))
        tree = Tree({"env": {"id": source}})
    for override in overrides:
        tree.put(override)
    return parse(_on_preset(tree, use_own=not is_file), RunConfig)


def load_resolved(text: str) -> ResolvedConfig:
    """The config of a run, from the YAML that this version of the program or an older one saved.

    Raises:
        ConfigError: for text that is no YAML, an unknown key or a wrong value.
    """
    return parse(_today(read_text(text, "the saved configuration")), ResolvedConfig)


def dump_config(config: RunConfig) -> str:
    """YAML that load_config turns into an equal RunConfig."""
    # asdict keeps the settings that equal their defaults, which msgspec may leave out.
    return in_yaml(msgspec.to_builtins(dataclasses.asdict(config)))


def preset_paths() -> dict[str, Path]:
    """Name of each preset -> its file, in alphabetical order."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def preset_for_env(env_id: str) -> Path | None:
    """The preset with this env.id (of several, the one with the shortest name), else its family's.

    The package of an id, as in gymnasium:CartPole-v1, makes no difference.
    """
    presets, own_id = preset_paths(), env_id.rpartition(":")[2]
    families = (presets[name] for prefix, name in _FAMILIES.items() if own_id.startswith(prefix))
    exact = [path for path in presets.values() if _part(_read(path), "env").get("id") == own_id]
    return min(exact, key=lambda path: len(path.stem), default=next(families, None))


def _on_preset(tree: Tree, *, use_own: bool) -> Tree:
    """The tree above the preset that its run.preset names; "auto" is its environment's own, if use_own.

    The name of the preset becomes its run.preset.
    """
    name, env_id = _part(tree, "run").get("preset", "auto"), _part(tree, "env").get("id")
    if name == "auto":
        own = preset_for_env(env_id) if use_own and isinstance(env_id, str) else None
        name = "none" if own is None else own.stem
    if name not in ("none", *preset_paths()):
        raise ConfigError(f"run.preset is {name!r}; give auto, none, or one of {', '.join(preset_paths())}")
    if isinstance(tree.values.get("run", {}), dict):
        tree = Tree({"run": {"preset": name}}).above(tree)
    # A saved configuration is complete, so its preset changes nothing.
    return tree if name == "none" else tree.above(_read(preset_paths()[name]))


def _named(factory: Callable[..., Any]) -> str:
    try:
        return import_path(factory)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _refuse_other(source: str) -> None:
    """Raises ConfigError if what was given as an environment is a preset, a folder or a file."""
    if source in preset_paths():
        raise ConfigError(
            f"{source} is a preset, no environment: name an environment, as in CartPole-v1 "
            f"--set run.preset={source}"
        )
    path = Path(source)
    # Not path.is_file, which raises OSError for a name that is too long to be one.
    if os.path.isfile(path / "config.yaml"):
        raise ConfigError(
            f"{source} is the folder of a run: repeat it with {shlex.quote(str(path / 'config.yaml'))}, "
            f"or go on with --run-dir {shlex.quote(source)} --resume"
        )
    if path.suffix and os.path.isfile(path):
        raise ConfigError(f"{source} is a file; settings are read from YAML files, whose names end in .yaml")


def _part(tree: Tree, section: str) -> Mapping[str, Any]:
    part = tree.values.get(section)
    return part if isinstance(part, dict) else {}


def _read(path: Path) -> Tree:
    try:
        return _today(read_file(path))
    except FileNotFoundError:
        names = ", ".join(preset_paths())
        raise ConfigError(
            f"{path}: no such file; there are presets in {PRESETS}, for --set run.preset=NAME: {names}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _today(tree: Tree) -> Tree:
    """The tree under today's names."""
    rename_settings(tree.values)
    return tree
