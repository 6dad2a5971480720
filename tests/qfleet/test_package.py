"""The public face: quick to import, typed, and nothing but names of what other packages define."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import qfleet
from cluster.settings.load_config import preset_paths

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_every_public_name_is_what_its_type_says() -> None:
    tree = ast.parse((ROOT / "qfleet" / "__init__.py").read_text("utf-8"))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    names = ["__version__"]
    for imported in typed.body:
        assert isinstance(imported, ast.ImportFrom)
        for alias in imported.names:
            names.append(alias.asname or alias.name)
            value = getattr(qfleet, names[-1])
            assert value is getattr(import_module(str(imported.module)), alias.name)
            assert (value.__doc__ or "").strip()
    assert sorted(names) == sorted(qfleet.__all__) == dir(qfleet)
    with pytest.raises(AttributeError, match="trian"):
        qfleet.trian  # type: ignore[attr-defined] # noqa: B018


def test_importing_it_loads_neither_torch_nor_ray_nor_numpy() -> None:
    program = "import qfleet, sys; print([name for name in ('torch', 'ray', 'numpy') if name in sys.modules])"
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran.stdout == "[]\n"
    assert time.monotonic() - began < 5


def test_the_version_has_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    assert qfleet.__version__ in (ROOT / "cluster" / "__init__.py").read_text("utf-8")


def test_the_extra_all_is_every_extra_for_users() -> None:
    extras = PROJECT["optional-dependencies"]
    (every,) = extras["all"]
    # Large, or for those who tune, track or document.
    apart = {"dev", "docs", "tuning", "wandb"}
    assert set(re.findall(r"[\w]+", every)[1:]) == extras.keys() - {"all", *apart}
    of_all = ("atari", "box2d", "minatar", "export", "video", "report", "tensorboard", "cluster")
    assert extras.keys() == {*of_all, *apart, "all"}


def test_the_readme_and_the_metadata_name_the_same_pythons() -> None:
    named = {
        each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", each)
    }
    assert named == {"3.11", "3.12", "3.13"}
    assert PROJECT["requires-python"] == ">=3.11"
    assert "Operating System :: POSIX :: Linux" in PROJECT["classifiers"]


def test_presets_are_found_by_one_function() -> None:
    assert {path.parent for path in preset_paths().values()} == {ROOT / "configs"}


def test_an_environment_is_trained_by_its_name(tmp_path: Path) -> None:
    settings = {"run.runtime": "serial", "stop.updates": 50, "learner.hidden_sizes": [16], "env.kwargs": {}}
    result = qfleet.train("FrozenLake-v1", str(tmp_path / "run"), seed=3, settings=settings)
    saved = qfleet.load_config(result.run_dir / "config.yaml")
    assert (saved.run.seed, saved.run.preset, saved.learner.hidden_sizes) == (3, "frozenlake", (16,))
    assert qfleet.load_policy(result.run_dir) is not None
    assert qfleet.evaluate(result.run_dir, episodes=2).version == result.outcome.final.updates_total
    with pytest.raises(qfleet.ConfigError, match=r"give run\.seed to load_config"):
        qfleet.train(saved, tmp_path / "other", seed=4)
