"""The `qfleet` command, also `python -m cluster.main`.

Owns the start of the process: thread limits and import path. The commands are in cluster.cli.
"""

import os
import sys

from cluster.engines.threads import SINGLE_THREADED

# numpy and torch read these when they load, so they are set before the other imports.
for _name, _value in SINGLE_THREADED.items():
    os.environ.setdefault(_name, _value)

from cluster.cli import run  # noqa: E402


def main() -> None:
    """Entry point of the `qfleet` command."""
    # Like `python -m`: a factory in the current folder can be imported here and in every role.
    if "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
