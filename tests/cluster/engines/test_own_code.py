"""Modules of a user that have the names of qfleet's packages harm nothing, unless the user imports them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from cluster.engines.own_code import OWN_ROOT, PACKAGES, entry_hook, own_code_first

FIRST = (
    f"import sys; sys.path.insert(0, {str(OWN_ROOT)!r}); import qfleet; sys.path.remove({str(OWN_ROOT)!r})"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with modules of each kind."""
    for name in ("learner/__init__.py", "learner/nets.py", "actors/heroes.py", "cluster.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("THEIRS = True\n")
    (tmp_path / "replay_service").mkdir()
    return tmp_path


def python(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in the folder, which is first on its search path; qfleet is not on it."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_packages_are_qfleets_own(folder: Path) -> None:
    program = f"{FIRST}\nfor name in {PACKAGES}: print(sys.modules[name].__file__)\nimport learner.nets"
    ran = python(folder, program.replace("import learner.nets", "import mine"))
    assert ran.stdout.splitlines() == [str(OWN_ROOT / name / "__init__.py") for name in PACKAGES]
    assert ran.stderr.endswith("No module named 'mine'\n")


@pytest.mark.parametrize(
    ("statement", "name", "theirs"),
    [
        ("import learner", "learner", "learner"),
        ("from learner.nets import THEIRS", "learner", "learner"),
        ("from actors import heroes", "actors", "actors"),
        ("import cluster as mine", "cluster", "cluster.py"),
    ],
)
def test_code_of_the_user_that_imports_theirs_is_refused(
    folder: Path, statement: str, name: str, theirs: str
) -> None:
    (folder / "mine.py").write_text(f"def later():\n    {statement}\n")
    ran = python(folder, f"{FIRST}\nimport mine\nprint('imported')\nmine.later()")
    assert ran.stdout == "imported\n"
    last = ran.stderr.splitlines()[-1]
    for words in (str(folder / "mine.py"), str(folder / theirs), str(OWN_ROOT / name), f"my_package.{name}"):
        assert words in last


def test_what_a_setting_names_is_explained_as_well(folder: Path) -> None:
    ran = python(folder, f"{FIRST}\nfrom importlib import import_module\nimport_module('learner.nets')")
    assert "no qfleet module learner.nets" in ran.stderr
    assert f"rename {folder / 'learner'}" in ran.stderr
    assert (
        "No module named 'learner.layers'"
        in python(
            folder.parent, f"{FIRST}\nfrom importlib import import_module\nimport_module('learner.layers')"
        ).stderr
    )


def test_a_module_that_was_imported_before_is_named(folder: Path) -> None:
    for name, theirs in (("cluster", "cluster.py"), ("learner", "learner/__init__.py")):
        last = python(folder, f"import {name}\n{FIRST}").stderr.splitlines()[-1]
        assert str(folder / theirs) in last
        assert "rename" in last


def test_without_such_modules_imports_are_those_of_python(tmp_path: Path) -> None:
    (tmp_path / "replay_service").mkdir()  # holds no code
    ran = python(
        tmp_path,
        f"import builtins\nbefore = builtins.__import__\n{FIRST}\nprint(before is builtins.__import__)",
    )
    assert ran.stdout == "True\n", ran.stderr
    (tmp_path / "mine.py").write_text(
        "from learner.config import LearnerConfig\nprint(LearnerConfig.__name__)\n"
    )
    assert python(tmp_path, f"{FIRST}\nimport mine").stdout == "LearnerConfig\n"


def test_pickles_of_qfleets_values_are_read_beside_such_modules(folder: Path) -> None:
    import learner.config

    data = cloudpickle.dumps(learner.config.LearnerConfig())
    program = f"{FIRST}\nfrom ray import cloudpickle\nprint(type(cloudpickle.loads({data!r})).__module__)"
    ran = python(folder, program)
    assert ran.stdout == "learner.config\n", ran.stderr


@pytest.mark.parametrize("root", [OWN_ROOT, Path("/nowhere")])
def test_the_hook_needs_no_module_of_qfleet_to_be_found(folder: Path, root: Path) -> None:
    data = cloudpickle.dumps(entry_hook(root))
    # An installed qfleet would be found without the hook's help.
    hidden = "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]"
    program = f"import pickle, sys\n{hidden}\npickle.loads({data!r})()\nprint('qfleet' in sys.modules)"
    ran = python(folder, program)
    assert ran.stdout == f"{root == OWN_ROOT}\n", ran.stderr


@pytest.mark.slow
def test_a_worker_of_ray_takes_qfleets_packages(folder: Path) -> None:
    program = f"""{FIRST}
from importlib import import_module
RayEngine = import_module("cluster.engines.ray_engine").RayEngine
Need = import_module("cluster.engines.engine").Need
UsageMeter = import_module("cluster.metrics.usage").UsageMeter
engine = RayEngine(private=True)
engine.start()
try:
    (reply,) = engine.call(engine.spawn("meter", UsageMeter, need=Need()), UsageMeter.due)
    print(type(engine.get(reply)).__module__)
finally:
    engine.close()
"""
    ran = python(folder, program)
    assert ran.stdout == "replay_service.messages\n", ran.stderr


def test_calling_it_again_changes_nothing() -> None:
    before = list(sys.path)
    own_code_first()
    assert sys.path == before
