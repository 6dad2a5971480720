"""Greedy episodes as an animated picture, drawn by the environments of cluster/policies/playback.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from qfleet_serial import SMALL, train_serial

from cluster.cli import run
from cluster.policies import video as video_module
from cluster.policies.video import film_run, save_gif


@pytest.fixture(scope="module")
def frozen_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("frozen") / "run"
    train_serial(run_dir, [*SMALL, "env.id=FrozenLake-v1", "stop.updates=80"])
    return run_dir


def pictures_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        frames = []
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")))
        return frames


def test_every_observation_is_a_picture(frozen_lake: Path) -> None:
    video = film_run(frozen_lake, episodes=3, seed=1)
    assert video.path == frozen_lake / "video.gif"
    assert len(video.returns) == 3
    assert video.pictures > 3
    frames = pictures_of(video.path)
    assert frames[0].shape == (256, 256, 3)
    # Equal pictures that follow each other are stored once.
    assert 1 < len(frames) <= video.pictures
    with Image.open(video.path) as gif:
        assert gif.info["duration"] % 250 == 0  # FrozenLake draws 4 a second


def test_the_same_seed_makes_the_same_film(frozen_lake: Path, tmp_path: Path) -> None:
    films = [
        film_run(frozen_lake, 2, seed, tmp_path / name).path.read_bytes()
        for seed, name in ((1, "a.gif"), (1, "b.gif"), (2, "c.gif"))
    ]
    assert films[0] == films[1]
    assert films[0] != films[2]


def test_atari_is_filmed_in_color_beside_what_the_policy_sees(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    train_serial(
        tmp_path / "run",
        [
            *SMALL,
            "env.id=ALE/Pong-v5",
            "env.max_episode_steps=30",
            "learner.hidden_sizes=[8]",
            "learner.network=mlp",
            "stop.updates=8",
            "evaluation.episodes=1",
        ],
    )
    video = film_run(tmp_path / "run", episodes=1, seed=0)
    frames = pictures_of(video.path)
    assert frames[0].shape == (210, 160, 3)
    assert len({tuple(pixel) for pixel in frames[-1].reshape(-1, 3).tolist()}) > 3
    assert (frames[-1][..., 0] != frames[-1][..., 2]).any()  # not gray
    assert video.pictures == 31


def test_colors_are_exact_up_to_256(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    palette = rng.integers(256, size=(200, 3), dtype=np.uint8)
    pictures = [palette[rng.integers(200, size=(40, 30))] for _ in range(3)]
    save_gif(tmp_path / "x.gif", iter(pictures), 50)
    for given, written in zip(pictures, pictures_of(tmp_path / "x.gif"), strict=True):
        np.testing.assert_array_equal(given, written)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episodes", "0"], "--episodes is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--out", "film.mp4"], "ends in .gif"),
        (["--out", "nowhere/film.gif"], "there is no folder nowhere"),
    ],
)
def test_bad_arguments_are_refused(
    frozen_lake: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["video", str(frozen_lake), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_an_environment_without_pictures_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_serial(tmp_path / "run", [*SMALL, "env.id=qfleet_test_envs:Corridor", "stop.updates=8"])
    assert run(["video", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "Corridor draws no pictures" in error
    assert "rgb_array" in error


@pytest.mark.parametrize("package", ["PIL", "pygame"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, frozen_lake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert run(["video", str(frozen_lake)]) == 2
    assert "qfleet[video]" in capsys.readouterr().err
    assert not list(frozen_lake.glob("*.partial"))


def test_the_command_says_what_was_filmed(frozen_lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["video", str(frozen_lake), "--episodes", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{frozen_lake / 'video.gif'}: ")
    assert "returns" in out


@pytest.mark.parametrize(
    ("how", "words"), [("none", "returned None"), ("floats", "float32 [8, 8, 3]"), ("flat", "[64]")]
)
def test_what_is_no_picture_is_refused(
    how: str, words: str, endless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = endless / "config.yaml"
    config.write_text(config.read_text().replace("how: picture", f"how: {how}"))
    assert run(["video", str(endless)]) == 2
    error = capsys.readouterr().err
    assert "Endless: render() returned" in error
    assert words in error


def test_an_episode_that_never_ends_is_bounded_and_says_so(
    endless: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(video_module, "_TELL_SECONDS", 0.0)
    assert run(["video", str(endless)]) == 0
    captured = capsys.readouterr()
    assert "1 episode had not ended after 3,000 steps, and only these are shown" in captured.out
    assert "filmed 1,000 steps" in captured.err


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A run on an environment whose episodes never end."""
    settings = ["env.id=qfleet_mistakes:Endless", "env.kwargs.how=picture", "evaluation.every_updates=1000"]
    train_serial(tmp_path / "run", [*SMALL, *settings, "env.max_episode_steps=50", "stop.updates=8"])
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("max_episode_steps: 50", "max_episode_steps: null"))
    return tmp_path / "run"


def test_a_film_ends_by_sigterm_and_leaves_nothing(frozen_lake: Path, tmp_path: Path) -> None:
    film = [sys.executable, "-m", "cluster.main", "video", str(frozen_lake), "--episodes", "100000"]
    out = tmp_path / "long.gif"
    filming = subprocess.Popen([*film, "--out", str(out)], stderr=subprocess.PIPE, text=True)
    partial, deadline = tmp_path / "long.gif.partial", time.monotonic() + 60.0
    while not partial.exists():
        assert time.monotonic() < deadline
        assert filming.poll() is None
    filming.send_signal(signal.SIGTERM)
    assert filming.wait(60) == 128 + signal.SIGTERM
    assert filming.stderr is not None
    assert "Traceback" not in filming.stderr.read()
    assert list(tmp_path.iterdir()) == []
