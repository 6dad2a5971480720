"""The command line: qfleet train | eval | check-env | plan | presets, also `python -m cluster.main`.

Owns arguments, exit status and what is printed; everything else is cluster.api's.
"""

from __future__ import annotations

import os
import sys

from cluster.engines.threads import SINGLE_THREADED

# Read by numpy and torch when they load, so it comes before them.
for _name, _value in SINGLE_THREADED.items():
    os.environ.setdefault(_name, _value)

from cluster.cli import run  # noqa: E402


def main() -> None:
    """Entry point of the `qfleet` command."""
    # As `python -m` does: an environment factory next to the user is found, here and in every role.
    if "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
