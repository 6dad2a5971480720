"""The wheel is built and installed once in a session; a folder of a user's, in which it is driven."""

from __future__ import annotations

from pathlib import Path

import pytest
from qfleet_installed import Installed, install


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """qfleet from its wheel, in an environment of its own."""
    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A user's project, whose modules have the names of qfleet's folders."""
    broken = "raise RuntimeError('a module of the user was imported')\n"
    for name in ("learner/__init__.py", "actors/heroes.py", "cluster.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(broken)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "cartpole.yaml").write_text("# not one of qfleet's\nstop: {env_steps: 1}\n")
    (tmp_path / "mine.py").write_text(
        "import gymnasium\n\n\ndef make():\n    return gymnasium.make('CartPole-v1')\n\n\n"
        # So late that only a role sees it, not the trial before a run.
        "class Late(gymnasium.Wrapper):\n    steps = 0\n\n    def step(self, action):\n"
        "        self.steps += 1\n        if self.steps > 30:\n            from cluster import groups\n"
        "        return super().step(action)\n\n\n"
        "def late():\n    return Late(make())\n"
    )
    return tmp_path
