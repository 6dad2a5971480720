"""Updates a second of the learner against a bare PyTorch loop, both on one thread with data in memory.

Run as `python -m benchmarks.update_step`. The two sides take turns, so that a machine that changes its speed
changes both; medians over the pairs are printed. The bare loop is a textbook's: nn.Sequential, images as they
come (channels first), a frozen target, mean squared error, gradients clipped at 10, torch.optim.Adam with its
defaults, and batches that are tensors already. The learner's side is all of `Learner.learn`: it takes numpy
minibatches, and gives TD errors and a report.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import cycle, pairwise
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import nn

from benchmarks.processor import processor
from learner.config import LearnerConfig, NetworkSpec
from learner.loop import Learner
from learner.networks.build import build_network
from replay_service.messages import Minibatch, ShardStatus

PAIRS = 7
MINIBATCHES = 16


@dataclass(frozen=True)
class Case:
    """One network and batch size; updates is the length of one timed run."""

    name: str
    spec: NetworkSpec
    config: LearnerConfig
    updates: int


CARTPOLE = NetworkSpec((4,), "float32", None, 2, stack=1)
ATARI = NetworkSpec(
    (4, 84, 84),
    "uint8",
    None,
    6,
    stack=4,
    pixels=("observation",),
    image_layouts={"observation": "HW"},
)
CASES = (
    Case("MLP 4-128-128-2, batch 64", CARTPOLE, LearnerConfig(batch_size=64), 600),
    Case("  same, double Q", CARTPOLE, LearnerConfig(batch_size=64, double=True), 600),
    Case("MLP 4-256-256-2, batch 256", CARTPOLE, LearnerConfig(hidden_sizes=(256, 256), batch_size=256), 200),
    Case("Nature CNN, batch 32", ATARI, LearnerConfig(batch_size=32), 10),
)


class Minibatches:
    """Serves the same few minibatches repeatedly and drops the TD errors."""

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(0)
        self.held = [random_minibatch(case, rng) for _ in range(MINIBATCHES)]
        self._next = cycle(self.held)

    def next_minibatch(self, update: int) -> Minibatch:
        return next(self._next)

    def give_back(self, index: int, td_errors: np.ndarray) -> None:
        pass

    def statuses(self) -> tuple[ShardStatus, ...]:
        return ()


def random_minibatch(case: Case, rng: np.random.Generator) -> Minibatch:
    spec, size = case.spec, case.config.batch_size
    frame = spec.observation_shape[1:] if spec.stack > 1 else spec.observation_shape
    window = rng.uniform(0, 255, (size, spec.stack + 1, *frame)).astype(spec.observation_dtype)
    return Minibatch(
        windows={"observation": window / np.float32(128) if window.dtype == np.float32 else window},
        action=rng.integers(spec.num_actions, size=size, dtype=np.int32),
        reward=np.ones(size, np.float32),
        discount=np.where(rng.random(size) < 0.05, 0.0, 0.99).astype(np.float32),
        policy_version=np.zeros(size, np.int64),
        weight=np.ones(size, np.float32),
        index=0,
    )


class Scaled(nn.Module):
    """Scales bytes to [0, 1]."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255.0


def textbook_network(spec: NetworkSpec, config: LearnerConfig) -> nn.Sequential:
    """The learner's architecture as plain nn.Sequential; the residual network is the learner's own."""
    if config.network == "impala_cnn":
        return nn.Sequential(build_network(spec, config))
    if spec.observation_dtype != "uint8":
        sizes = (*spec.observation_shape, *config.hidden_sizes)
        hidden = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(sizes[-1], spec.num_actions))
    return nn.Sequential(
        Scaled(),
        *(nn.Conv2d(spec.stack, 32, 8, 4), nn.ReLU()),
        *(nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(3_136, 512), nn.ReLU(), nn.Linear(512, spec.num_actions)),
    )


class BareLoop:
    """The update as the PyTorch tutorial writes it."""

    def __init__(self, case: Case, minibatches: list[Minibatch], device: str = "cpu") -> None:
        """device: computes; minibatches stay in the host's memory."""
        self._device = torch.device(device)
        network = textbook_network(case.spec, case.config).to(device)
        self.online, self.target = network, copy.deepcopy(network)
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=case.config.first_rate)
        stack = case.spec.stack
        self.batches = cycle(
            [
                (
                    torch.tensor(m.windows["observation"][:, :stack]).squeeze(1),
                    torch.tensor(m.action).long(),
                    torch.tensor(m.reward),
                    torch.tensor(m.discount),
                    torch.tensor(m.windows["observation"][:, -stack:]).squeeze(1),
                )
                for m in minibatches
            ]
        )

    def learn(self, updates: int) -> None:
        for _ in range(updates):
            batch = (tensor.to(self._device, non_blocking=True) for tensor in next(self.batches))
            obs_tm1, a_tm1, r_t, discount_t, obs_t = batch
            with torch.no_grad():
                target = r_t + discount_t * self.target(obs_t).max(dim=1).values
            q_tm1 = self.online(obs_tm1).gather(1, a_tm1.unsqueeze(1)).squeeze(1)
            loss = nn.functional.mse_loss(q_tm1, target)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.online.parameters(), 10.0)
            self.optimizer.step()


def updates_per_second(loop: BareLoop | Learner, updates: int) -> float:
    began = perf_counter()
    loop.learn(updates)
    return updates / (perf_counter() - began)


def main() -> None:
    print(processor(), flush=True)
    torch.set_num_threads(1)
    print(f"{'case':30s} {'bare/s':>9s} {'learner/s':>9s} {'ratio':>6s}   (medians of {PAIRS} pairs)")
    for case in CASES:
        source = Minibatches(case)
        bare = BareLoop(case, source.held)
        learner = Learner(case.config, case.spec, source, seed=0, threads=1)
        for loop in (bare, learner):
            loop.learn(max(case.updates // 10, 2))
        pairs = [
            (updates_per_second(bare, case.updates), updates_per_second(learner, case.updates))
            for _ in range(PAIRS)
        ]
        ratio = median(ours / theirs for theirs, ours in pairs)
        theirs, ours = (median(side) for side in zip(*pairs, strict=True))
        print(f"{case.name:30s} {theirs:9.1f} {ours:9.1f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
