"""A training within a study: shown nowhere, and whole or nothing.

Owns how a study runs one training; must not know of any study.
"""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

from cluster.api import Result, Resume, train
from cluster.settings.config import RunConfig
from cluster.show.view import make_view


def quiet_run(config: RunConfig, run_dir: Path, resume: Resume = "never") -> Result:
    """Trains to a stop condition. Raises SystemExit on a signal (part of a run is no result), RunFailed."""
    result = train(config, run_dir, resume=resume, view=partial(make_view, stream=io.StringIO()))
    if result.signal is not None:
        raise SystemExit(128 + result.signal)
    return result
