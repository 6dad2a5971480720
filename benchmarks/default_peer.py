"""Stable-Baselines3's side of `benchmarks.defaults`: its DQN as it comes, for so many seconds.

Run as `python -m benchmarks.default_peer TASK SEED SECONDS`: needs stable-baselines3 and the task's package,
prints env steps and mean return.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

import gymnasium as gym

from benchmarks.default_tasks import SCORE_SEED, TASKS, make_env, mean_return

_STEPS = 100_000
"""Of one call of learn(): exploration takes a tenth of them, by default."""


def make_peer_env(name: str) -> gym.Env[Any, Any]:
    """The task as its users give it to Stable-Baselines3: of MiniGrid's observations only the picture."""
    env = make_env(TASKS[name])
    if TASKS[name].env_id.startswith("minigrid:"):
        from minigrid.wrappers import ImgObsWrapper

        env = ImgObsWrapper(env)
    return env


def main() -> None:
    """Learns, plays, and prints both numbers."""
    from stable_baselines3 import DQN

    name, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    model = DQN("MlpPolicy", make_peer_env(name), seed=seed, device="cpu")
    deadline = monotonic() + seconds
    model.learn(_STEPS, callback=lambda *_: monotonic() < deadline)
    while monotonic() < deadline:
        model.learn(_STEPS, callback=lambda *_: monotonic() < deadline, reset_num_timesteps=False)

    def act(observation: Any, info: dict[str, Any]) -> Any:
        action, _ = model.predict(observation, deterministic=True)
        return action.item()

    mean = mean_return(make_peer_env(name), act, lambda: None, TASKS[name].episodes, SCORE_SEED)
    print(f"{model.num_timesteps} {mean}")


if __name__ == "__main__":
    main()
