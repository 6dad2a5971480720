"""The learner against value iteration on a small random Markov decision process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner.config import LearnerConfig, NetworkSpec
from learner.loop import Learner
from learner.torch_policy import TorchPolicy
from replay_service.messages import Minibatch

STATES, ACTIONS, GAMMA = 6, 3, 0.9


class Mdp:
    """Random chances [S, A, S], rewards [S, A, S]; entering the last state terminates."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.chance = rng.dirichlet(np.full(STATES, 0.5), size=(STATES, ACTIONS))
        self.reward = rng.normal(size=(STATES, ACTIONS, STATES))
        self.discount = np.broadcast_to(
            np.where(np.arange(STATES) == STATES - 1, 0.0, GAMMA), self.chance.shape
        )

    def optimal_q(self) -> np.ndarray:
        """Value iteration in float64 to the last digits, [S, A]."""
        q = np.zeros((STATES, ACTIONS))
        for _ in range(1000):
            q = (self.chance * (self.reward + self.discount * q.max(axis=1))).sum(axis=2)
        return q

    def all_transitions(self, one_hot: bool) -> Minibatch:
        """Every (s, a, s') once, weighted by its chance: the loss is then the expected one, without noise."""
        s_tm1, a_tm1, s_t = (axis.ravel() for axis in np.indices(self.chance.shape))
        window = np.stack([s_tm1, s_t], axis=1)
        return Minibatch(
            windows={"observation": np.eye(STATES, dtype=np.float32)[window] if one_hot else window},
            action=a_tm1.astype(np.int32),
            reward=self.reward.ravel().astype(np.float32),
            discount=self.discount.ravel().astype(np.float32),
            policy_version=np.zeros(s_t.size, np.int64),
            weight=self.chance.ravel().astype(np.float32),
            index=0,
        )


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_table_network_finds_the_optimal_values(seed: int, double: bool, list_source: Any) -> None:
    # A rate of alpha B / 2 with alpha = 1, and a target copied each update, make every update one sweep of
    # value iteration: after 200 the error is 0.9^200 of the first at most, and only rounding is left.
    mdp = Mdp(seed)
    minibatch = mdp.all_transitions(one_hot=False)
    config = LearnerConfig(
        optimizer="sgd",
        double=double,
        learning_rate=minibatch.action.size / 2,
        max_grad_norm=None,
        target_update_updates=1,
    )
    spec = NetworkSpec((), "int64", STATES, ACTIONS, stack=1)
    _, flat = Learner(config, spec, list_source([minibatch]), seed=0, threads=1).learn(200)
    np.testing.assert_allclose(flat.reshape(STATES, ACTIONS), mdp.optimal_q(), atol=1e-5)


@pytest.mark.parametrize("double", [False, True])
def test_mlp_under_adam_comes_within_a_hundredth_of_the_optimal_values(
    double: bool, list_source: Any
) -> None:
    mdp = Mdp(seed=2)
    minibatch = mdp.all_transitions(one_hot=True)
    config = LearnerConfig(
        hidden_sizes=(32, 32),
        double=double,
        learning_rate=3e-3,
        learning_rate_decay_updates=3000,
        target_update_updates=50,
    )
    spec = NetworkSpec((STATES,), "float32", None, ACTIONS, stack=1)
    _, flat = Learner(config, spec, list_source([minibatch]), seed=0, threads=1).learn(3000)
    policy = TorchPolicy(spec, config, threads=1)
    policy.load(flat)
    learned = policy.q_values(np.eye(STATES, dtype=np.float32))
    assert np.abs(learned - mdp.optimal_q()).max() < 1e-2
