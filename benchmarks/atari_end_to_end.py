"""Updates and env steps a second of a whole training: Pong, Nature CNN, batch 32, an update per 4 env steps.

Run as `python -m benchmarks.atari_end_to_end [--ray] [--sb3-python PATH] [--cleanrl-python PATH --cleanrl
CHECKOUT] [--turns N] [--seconds S]`: the interpreters of environments with stable-baselines3 and ale-py, and
with what CleanRL's dqn_atari.py needs. The sides take turns; each is timed from some seconds after its first
update on, for S seconds. Ours is the preset atari.yaml by the local runtime, evaluation left out; with --ray
the same preset by the ray runtime stands beside it. The peers' DQNs have the same network and batch size and
torch's default threads, Stable-Baselines3 eight environments, CleanRL the one that it can. All keep 84 x 84
gray, stack 4, frame skip 4. Peers make exactly an update per 4 env steps; ours may catch up with what was
acted before the first update, so both rates are compared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.processor import processor
from benchmarks.recorded_runs import json_lines
from cluster.settings.load_config import PRESETS

WARM_UP_SECONDS = 10.0
LEARNING_STARTS = 2_000
ENV_STEPS_PER_UPDATE = 4
BARS = {"stable-baselines3": 1.2, "cleanrl": 1.2, "ray": 1.0}

# Two gradient steps for each step of eight environments: one update per 4 env steps.
STABLE_BASELINES3 = """
import sys, time
import ale_py, gymnasium
gymnasium.register_envs(ale_py)
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

warm_up, seconds, learning_starts = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])

class Timer(BaseCallback):
    began = None
    def _on_step(self):
        now = time.perf_counter()
        if self.num_timesteps <= learning_starts:
            self.learning_at = now
        elif self.began is None:
            if now - self.learning_at >= warm_up:
                self.began, self.first = now, self.num_timesteps
        elif now - self.began >= seconds:
            print((self.num_timesteps - self.first) / (now - self.began))
            return False
        return True

env = VecFrameStack(make_atari_env("ALE/Pong-v5", n_envs=8, env_kwargs={"frameskip": 1}), 4)
model = DQN("CnnPolicy", env, batch_size=32, buffer_size=20_000, learning_starts=learning_starts,
            train_freq=1, gradient_steps=2, target_update_interval=8_000, learning_rate=1e-4,
            exploration_initial_eps=0.1, exploration_final_eps=0.1)
model.learn(10**9, callback=Timer())
"""

# The games register themselves; the script is CleanRL's own.
CLEANRL = """
import runpy, sys
import ale_py
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Rates:
    """What a side did in a second."""

    updates: float
    env_steps: float

    def __str__(self) -> str:
        return f"{self.updates:.2f} updates, {self.env_steps:.2f} env steps"


def ours(runtime: str, seconds: float) -> Rates:
    """The rates of `qfleet train --runtime RUNTIME`."""
    settings = (
        f"pacing.learning_starts={LEARNING_STARTS}",
        f"stop.seconds={WARM_UP_SECONDS + seconds + 30.0}",  # 30: more than until the first update
        "replay.capacity=20_000",
        "actors.epsilon_start=0.1",
        "evaluation.every_updates=1_000_000",
        "metrics.every_seconds=1",
    )
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "cluster.main", "train", str(PRESETS / "atari.yaml")]
        command += ["--runtime", runtime, "--run-dir", str(run_dir)]
        command += [part for setting in settings for part in ("--set", setting)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = json_lines(run_dir / "metrics.jsonl")
    learning_at = next(line["run_seconds"] for line in lines if line["updates_total"])
    timed = [line for line in lines if line["run_seconds"] >= learning_at + WARM_UP_SECONDS]
    timed = [line for line in timed if line["run_seconds"] <= timed[0]["run_seconds"] + seconds]
    first, last = timed[0], timed[-1]
    steps = last["env_steps_total"] - first["env_steps_total"]
    timed_seconds = last["run_seconds"] - first["run_seconds"]
    if timed_seconds < 0.9 * seconds:
        raise RuntimeError(
            f"only {timed_seconds:.0f} s could be timed: learning began late; close other programs"
        )
    updates = last["updates_total"] - first["updates_total"]
    return Rates(updates / timed_seconds, steps / timed_seconds)


def of_peer(env_steps: float) -> Rates:
    """A peer's rates by its env steps a second."""
    return Rates(env_steps / ENV_STEPS_PER_UPDATE, env_steps)


def stable_baselines3(python: Path, seconds: float) -> Rates:
    """The rates of Stable-Baselines3."""
    arguments = [str(WARM_UP_SECONDS), str(seconds), str(LEARNING_STARTS)]
    command = [str(python), "-c", STABLE_BASELINES3, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return of_peer(float(done.stdout.split()[-1]))


def cleanrl(python: Path, checkout: Path, seconds: float) -> Rates:
    """The rates of CleanRL's script, by the lines that it prints every 100 steps once it learns."""
    settings = ("--env-id", "PongNoFrameskip-v4", "--start-e", "0.1", "--end-e", "0.1")
    sizes = ("--learning-starts", str(LEARNING_STARTS), "--buffer-size", "20000")
    script = checkout.absolute() / "cleanrl" / "dqn_atari.py"
    command = [str(python.absolute()), "-u", "-c", CLEANRL, str(script), *settings, *sizes]
    environment = {**os.environ, "PYTHONPATH": str(checkout.absolute())}
    marks: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("SPS:"):
                marks.append(perf_counter())
                if marks[-1] - marks[0] >= WARM_UP_SECONDS + seconds:
                    break
        else:
            raise RuntimeError(f"{script} ended with {process.wait()} before it was timed")
        process.kill()
    timed = [mark for mark in marks if mark - marks[0] >= WARM_UP_SECONDS]
    return of_peer(100 * (len(timed) - 1) / (timed[-1] - timed[0]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ray", action="store_true", help="ours by the ray runtime, too")
    parser.add_argument("--sb3-python", type=Path)
    parser.add_argument("--cleanrl-python", type=Path)
    parser.add_argument("--cleanrl", type=Path, help="a checkout of CleanRL")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0)
    options = parser.parse_args(arguments)
    if (options.cleanrl is None) != (options.cleanrl_python is None):
        parser.error("give --cleanrl-python and --cleanrl together")
    seconds: float = options.seconds
    peers: dict[str, Callable[[], Rates]] = {}
    if options.ray:
        peers["ray"] = lambda: ours("ray", seconds)
    if options.sb3_python is not None:
        peers["stable-baselines3"] = lambda: stable_baselines3(options.sb3_python, seconds)
    if options.cleanrl is not None:
        peers["cleanrl"] = lambda: cleanrl(options.cleanrl_python, options.cleanrl, seconds)
    if not peers:
        parser.error("give a side to compare with: --ray, --sb3-python or --cleanrl")
    print(processor())
    ratios: dict[str, list[Rates]] = {name: [] for name in peers}
    for _ in range(options.turns):
        mine = ours("local", seconds)
        for name, measured in peers.items():
            theirs = measured()
            ratio = Rates(mine.updates / theirs.updates, mine.env_steps / theirs.env_steps)
            ratios[name].append(ratio)
            print(f"{name}: {theirs}, ours: {mine}, ratio: {ratio}", flush=True)
    for name, found in ratios.items():
        updates = median(one.updates for one in found)
        env_steps = median(one.env_steps for one in found)
        print(
            f"{name}: medians {updates:.2f} x the updates, {env_steps:.2f} x the env steps (bar {BARS[name]})"
        )


if __name__ == "__main__":
    main()
