"""The passes of online and target network that an update needs, and all of their outputs.

Owns which network sees which observations; must not import the loop, optimizers or the replay service.
"""

from torch import Tensor

from learner.batch import Observations
from learner.config import LearnerConfig
from learner.networks.flat import FlatNetwork
from learner.objectives.fit import Outputs


def passes(
    online: FlatNetwork,
    target: FlatNetwork,
    obs_tm1: Observations,
    obs_t: Observations,
    config: LearnerConfig,
) -> Outputs:
    """The outputs that fit one batch; the online network keeps what `backward` needs of those for obs_tm1."""
    if config.munchausen:
        policy_tm1, outputs_t = target.evaluate_pair(obs_tm1, obs_t)
        return Outputs(online.forward(obs_tm1), outputs_t, policy_tm1=policy_tm1)
    outputs_t = target.evaluate(obs_t)
    if config.double:
        outputs_tm1, choosing = online.forward_pair(obs_tm1, obs_t)
        return Outputs(outputs_tm1, outputs_t, choosing)
    return Outputs(online.forward(obs_tm1), outputs_t)


def implicit_passes(
    online: FlatNetwork,
    target: FlatNetwork,
    obs_tm1: Observations,
    obs_t: Observations,
    config: LearnerConfig,
    fractions: Tensor,
    fractions_t: Tensor,
) -> Outputs:
    """The same for implicit quantiles, at the fractions [B, N] and [B, N'] of each transition.

    The next action is the one that acting would take: the best mean over the fixed fractions, of the target
    network, or of the online network with double Q-learning. Munchausen's policy is of these means, too.
    """
    outputs_t = target.evaluate(obs_t, fractions_t)
    outputs_tm1 = online.forward(obs_tm1, fractions)
    choosing = (online if config.double else target).evaluate(obs_t)
    policy_tm1 = target.evaluate(obs_tm1) if config.munchausen else None
    return Outputs(outputs_tm1, outputs_t, choosing, fractions, policy_tm1)
