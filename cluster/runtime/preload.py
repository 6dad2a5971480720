"""The modules that processes load before they fork the roles of the local runtime, or whole runs.

Owns these lists; must not import what they name, because loading it takes longer than starting the processes.
"""

from cluster.engines.machine import cluster_address
from cluster.engines.process_engine import ForkServers, can_run
from cluster.engines.template import Template
from cluster.settings.config import RunSection
from cluster.settings.resolve import runtime_of

_ACTING = ("cluster.runtime.roles", "actors.rollout", "actors.evaluation", "actors.policy")
_LEARNING = (
    "learner.loop",
    "learner.torch_policy",
    "learner.skipped_updates",
    "replay_service.sampler",
    *_ACTING,
)


def forks_roles(run: RunSection) -> bool:
    """Whether the roles of such a run are forked on this machine."""
    return runtime_of(run, on_cluster=bool(cluster_address())) == "local" and can_run()


def fork_servers() -> ForkServers:
    """The processes that fork the roles of a run, not started yet."""
    return ForkServers(_ACTING, _LEARNING)


def run_template() -> Template:
    """The process that forks whole runs, with all that they need; not started yet."""
    return Template("cluster.main", ("cluster.api", *_LEARNING))
