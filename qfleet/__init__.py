"""qfleet: distributed DQN, from Python. Only names what other packages define.

    import qfleet

    result = qfleet.train("CartPole-v1", seed=1)
    policy = qfleet.load_policy(result.run_dir)

Names load when they are first used, so that `import qfleet` loads neither torch nor Ray.
"""

import sys as _sys
from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING

_ROOT = str(_Path(__file__).resolve().parents[1])

# A folder of the user's on the search path may hold a `cluster` of its own.
_sys.path.insert(0, _ROOT)
try:
    from cluster.engines.own_code import own_code_first as _own_code_first
except ModuleNotFoundError as _error:
    raise ImportError(
        f"{getattr(_sys.modules.get('cluster'), '__file__', 'another `cluster`')} was imported before "
        f"qfleet, which has a package of that name, {_ROOT}/cluster: rename yours, or move it into a package "
        "of your own"
    ) from _error
finally:
    _sys.path.remove(_ROOT)
_own_code_first()

from cluster import __version__  # noqa: E402

if TYPE_CHECKING:
    from cluster.api import Result, train
    from cluster.policies.evaluate import Played
    from cluster.policies.evaluate import evaluate_run as evaluate
    from cluster.policies.playback import GreedyPolicy
    from cluster.policies.saved_policy import load_policy
    from cluster.record.callbacks import RunControl
    from cluster.record.run_events import (
        CheckpointSaved,
        Ended,
        Evaluated,
        Measured,
        NewBest,
        RunEvent,
        Started,
    )
    from cluster.report.notebook import LivePlot
    from cluster.report.table import load_metrics
    from cluster.runtime.failure import RunFailed
    from cluster.settings.config import ConfigError, RunConfig
    from cluster.settings.load_config import load_config

_HOMES = {
    "ConfigError": ("cluster.settings.config", "ConfigError"),
    "GreedyPolicy": ("cluster.policies.playback", "GreedyPolicy"),
    "Played": ("cluster.policies.evaluate", "Played"),
    "Result": ("cluster.api", "Result"),
    "RunConfig": ("cluster.settings.config", "RunConfig"),
    "RunFailed": ("cluster.runtime.failure", "RunFailed"),
    "CheckpointSaved": ("cluster.record.run_events", "CheckpointSaved"),
    "Ended": ("cluster.record.run_events", "Ended"),
    "Evaluated": ("cluster.record.run_events", "Evaluated"),
    "LivePlot": ("cluster.report.notebook", "LivePlot"),
    "Measured": ("cluster.record.run_events", "Measured"),
    "NewBest": ("cluster.record.run_events", "NewBest"),
    "RunEvent": ("cluster.record.run_events", "RunEvent"),
    "Started": ("cluster.record.run_events", "Started"),
    "RunControl": ("cluster.record.callbacks", "RunControl"),
    "evaluate": ("cluster.policies.evaluate", "evaluate_run"),
    "load_config": ("cluster.settings.load_config", "load_config"),
    "load_metrics": ("cluster.report.table", "load_metrics"),
    "load_policy": ("cluster.policies.saved_policy", "load_policy"),
    "train": ("cluster.api", "train"),
}
"""Name -> the module that defines it, and its name there."""

__all__ = [
    "CheckpointSaved",
    "ConfigError",
    "Ended",
    "Evaluated",
    "GreedyPolicy",
    "LivePlot",
    "Measured",
    "NewBest",
    "Played",
    "Result",
    "RunConfig",
    "RunControl",
    "RunEvent",
    "RunFailed",
    "Started",
    "__version__",
    "evaluate",
    "load_config",
    "load_metrics",
    "load_policy",
    "train",
]


def __getattr__(name: str) -> object:
    """Loads a public name from its home when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qfleet' has no attribute {name!r}")
    module, defined = _HOMES[name]
    value = globals()[name] = getattr(_import_module(module), defined)
    return value


def __dir__() -> list[str]:
    return [*__all__]
