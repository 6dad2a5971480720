"""Every setting has its line, in docs/settings.md and in `qfleet settings`."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from cluster.cli import run
from cluster.settings.catalog import MEANINGS, page, settings, text
from cluster.settings.config import RunConfig
from cluster.settings.names import section_in, settings_of

DOCUMENT = Path(__file__).parents[3] / "docs" / "settings.md"


def test_every_setting_has_its_line() -> None:
    assert [each.name for each in settings()] == list(MEANINGS)
    assert set(settings_of(RunConfig)) <= MEANINGS.keys()


def test_meanings_have_one_keeper() -> None:
    hints = typing.get_type_hints(RunConfig)
    for section, kind in ((name, section_in(hint)) for name, hint in hints.items()):
        assert kind is not None
        own = " ".join((kind.__doc__ or "").split())
        assert own.startswith(f"The section `{section}`: ")
        assert "cluster/settings/catalog.py says what each means." in own
        names = [item.name for item in dataclasses.fields(kind)]
        assert not re.findall(rf"\b(?:{'|'.join(names)}): ", own.partition("`: ")[2])


def test_a_setting_that_is_chosen_says_how() -> None:
    chosen = ["actors.num_actors", "replay.capacity", "learner.updates_per_chunk", "stop.target_return"]
    assert all(MEANINGS[name].automatic for name in chosen)


def test_the_page_is_current() -> None:
    wanted = f"write it: python -m cluster.settings.catalog > {DOCUMENT}"
    assert DOCUMENT.read_text(encoding="utf-8") == page(), wanted


def test_the_command_prints_those_that_match(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["settings", "learning_r"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("learner.learning_rate=null (number or null)\n    learning rate at the start\n")
    assert "learner.learning_rate_decay_updates=null [updates] (whole number or null)" in shown
    assert run(["settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(not line.startswith(" ") for line in lines) == len(MEANINGS)
    assert max(map(len, lines)) <= 120
    assert run(["settings", "GAMMA"]) == 0
    assert capsys.readouterr().out.startswith("actors.discount=0.99")


def test_other_names_and_patterns_that_fit_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["settings", "total_timesteps"]) == 0
    assert capsys.readouterr().out.startswith("stop.env_steps=")
    assert run(["settings", "xyzzyx"]) == 2
    assert "no setting holds 'xyzzyx'" in capsys.readouterr().err
    assert run(["settings", "["]) == 2
    assert "is no pattern" in capsys.readouterr().err


def test_defaults_and_types_are_in_words() -> None:
    told = {each.name: each for each in settings()}
    assert told["learner.hidden_sizes"][1:3] == ("list of numbers", "[128, 128]")
    assert told["stop.target_return"][1:3] == ("number or auto or null", "auto")
    assert told["learner.double"][1:3] == ("true or false", "false")
    assert text([told["stop.seconds"]]).splitlines()[0] == "stop.seconds=null [s] (number or null)"
