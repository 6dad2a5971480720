"""The `qfleet` command, also `python -m cluster.main`.

Owns how the process starts: threads and import path; cluster.cli has the commands.
"""

from __future__ import annotations

import os
import sys

from cluster.engines.threads import SINGLE_THREADED

# numpy and torch read these when they load, so they are set before the other imports.
for _name, _value in SINGLE_THREADED.items():
    os.environ.setdefault(_name, _value)

from cluster.cli import run  # noqa: E402


def main() -> None:
    """Entry point of the `qfleet` command."""
    # As `python -m` does, so that a factory in the user's folder is found here and in every role.
    if "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
