"""The modules that processes load before they fork the roles of the local runtime.

Owns these lists; must not import what they name, because loading it takes longer than starting the processes.
"""

from cluster.engines.process_engine import ForkServers

_ACTING = ("cluster.runtime.roles", "actors.rollout", "actors.evaluation", "actors.policy")
_LEARNING = (
    "learner.loop",
    "learner.torch_policy",
    "learner.skipped_updates",
    "replay_service.sampler",
    *_ACTING,
)


def fork_servers() -> ForkServers:
    """The processes that fork the roles of a run, not started yet."""
    return ForkServers(_ACTING, _LEARNING)
