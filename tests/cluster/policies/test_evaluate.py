"""Evaluations of a run by `qfleet eval`, and that they can be repeated episode by episode."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from qfleet_serial import SMALL, train_serial

from actors.envs.make import lane_seeds
from cluster.cli import run
from cluster.policies.evaluate import evaluate_run
from cluster.policies.saved_policy import load_policy
from learner.weights import load_weights, save_weights


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("cartpole") / "run"
    train_serial(run_dir, SMALL)
    return run_dir


def eval_json(capsys: pytest.CaptureFixture[str], run_dir: Path, *arguments: str) -> dict[str, object]:
    assert run(["eval", str(run_dir), "--json", *arguments]) == 0
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return answer


def test_eval_prints_one_json_object(cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = eval_json(capsys, cartpole, "--episodes", "5")
    assert set(answer) == {"weights", "version", "episodes", "seed", "mean", "std", "returns"}
    returns = answer["returns"]
    assert isinstance(returns, list)
    assert (answer["weights"], answer["episodes"], answer["seed"], len(returns)) == ("best", 5, 0, 5)
    assert answer["mean"] == pytest.approx(np.mean(returns))
    assert answer["std"] == pytest.approx(np.std(returns))
    facts = load_weights(cartpole / "weights" / "best.safetensors")[1]
    assert answer["version"] == int(facts["version"])


def test_eval_depends_on_its_seed_alone(cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, again, other = (
        eval_json(capsys, cartpole, "--episodes", "20", "--seed", seed)["returns"] for seed in ("1", "1", "2")
    )
    assert one == again
    assert one != other


def test_eval_speaks_plainly_without_json(cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(cartpole), "--episodes", "4"]) == 0
    assert "over 4 greedy episodes" in capsys.readouterr().out


def test_eval_falls_back_to_the_latest_weights(
    cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.yaml", "provenance.json"):
        (tmp_path / name).write_bytes((cartpole / name).read_bytes())
    assert run(["eval", str(tmp_path)]) == 2
    assert "holds no weights yet" in capsys.readouterr().err
    (tmp_path / "weights").mkdir()
    flat = load_weights(cartpole / "weights" / "latest.safetensors")[0]
    save_weights(tmp_path / "weights" / "latest.safetensors", flat, {"version": "200"})
    answer = eval_json(capsys, tmp_path, "--episodes", "2")
    assert (answer["weights"], answer["version"]) == ("latest", 200)


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [(["--episodes", "0"], "--episodes is 0"), (["--seed", "-1"], "--seed is -1")],
)
def test_eval_refuses_bad_numbers(
    cartpole: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], fact: str
) -> None:
    assert run(["eval", str(cartpole), *arguments]) == 2
    assert fact in capsys.readouterr().err


def test_eval_refuses_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(tmp_path / "nowhere")]) == 2
    captured = capsys.readouterr()
    assert f"qfleet: {tmp_path / 'nowhere'}: no run directory" in captured.err
    assert captured.out == ""


def test_a_policy_replays_its_evaluation_episode_by_episode(tmp_path: Path) -> None:
    # On this backend every episode has a seed of its own, so it can be played again by itself.
    train_serial(tmp_path / "run", [*SMALL, "env.backend=sync", "run.seed=4"])
    played = evaluate_run(tmp_path / "run", episodes=6, seed=5)
    policy = load_policy(tmp_path / "run")
    env = gym.make("CartPole-v1")
    domain = np.random.SeedSequence(4, spawn_key=((1 << 40) + 5,))
    returns = []
    for seed in lane_seeds(domain, 6):
        observation, _ = env.reset(seed=int(seed))
        policy.reset()
        total, ended = 0.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(policy(observation))
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
    env.close()
    assert tuple(returns) == played.returns
    assert len(set(returns)) > 1
