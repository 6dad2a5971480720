"""A run in Weights & Biases: settings, metrics by group, and its weights and report as artifacts.

Owns the use of an optional package (extra "wandb"); must not import torch or ray. Without a key of an
account, and where WANDB_MODE says so, everything stays in RUN_DIR/wandb; `wandb sync` uploads it.
"""

import hashlib
import netrc
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from cluster.record.tracker_messages import Begin, File, Finish, Scalars

_PROJECT = "qfleet"


def mode() -> Literal["online", "offline"] | None:
    """Online where there is a key of an account, else offline; None: as WANDB_MODE says, which W&B reads."""
    if os.environ.get("WANDB_MODE"):
        return None
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    with suppress(OSError, netrc.NetrcParseError):
        if any("wandb" in host for host in netrc.netrc().hosts):
            return "online"
    return "offline"


class WandbRun:
    """A run of the project "qfleet", or WANDB_PROJECT; a run that is resumed stays the same one."""

    def __init__(self) -> None:
        self._run: Any = None

    def begin(self, begin: Begin) -> None:
        """Begins the run, with the settings as its config."""
        import wandb

        folder = Path(begin.run_dir).absolute()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=folder.name,
            id=hashlib.sha256(str(folder).encode()).hexdigest()[:16],
            resume="allow",
            dir=folder,
            config=dict(begin.settings),
            mode=mode(),
        )
        self._run.define_metric("*", step_metric="env_steps")

    def scalars(self, scalars: Scalars) -> None:
        """Adds the numbers over env steps."""
        self._run.log({"env_steps": scalars.env_steps, **scalars.values})

    def file(self, file: File) -> None:
        """Adds a version of the artifact of this kind."""
        import wandb

        artifact = wandb.Artifact(
            f"{self._run.id}-{file.kind}", "model" if file.kind == "best" else file.kind
        )
        artifact.add_file(file.path)
        self._run.log_artifact(artifact)
        if file.kind == "report":
            self._run.log({"report": wandb.Html(Path(file.path).read_text(encoding="utf-8"))})

    def finish(self, finish: Finish) -> None:
        """Adds how the run ended, and ends it here, too, with W&B's own process."""
        import wandb

        self._run.summary.update({"end": finish.reason, **finish.values})
        self._run.finish(exit_code=int(finish.failed))
        wandb.teardown()
