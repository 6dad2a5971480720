"""The failure that ends a run.

Owns that exception only; must not import anything but the standard library.
"""

from pathlib import Path


class RunFailed(Exception):  # noqa: N818 - the outcome of a run
    """The run cannot continue; the message begins with the traceback or the reason.

    role: the role that failed ("actor 3"), if it was one; logs: the folder of the run's logs.
    """

    def __init__(self, message: str, role: str | None = None, logs: Path | None = None) -> None:
        super().__init__(message)
        self.role = role
        self.logs = logs
