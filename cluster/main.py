"""The `qfleet` command, also `python -m qfleet` and `python -m cluster.main`.

Owns the start of the process: thread limits and import path. The commands are in cluster.cli.
"""

import os
import sys
from io import TextIOWrapper

from cluster.engines.own_code import own_code_first
from cluster.engines.threads import SINGLE_THREADED

# numpy and torch read these when they load, so they are set before the other imports.
for _name, _value in SINGLE_THREADED.items():
    os.environ.setdefault(_name, _value)

from cluster.cli import EXIT_BAD_INPUT, run  # noqa: E402


def main(*, forked: bool = False) -> None:
    """Entry point of the `qfleet` command. forked: see ForkServers.start."""
    _make_output_safe()
    try:
        here = os.getcwd()
    except FileNotFoundError:
        print("qfleet: the current folder was removed; change to one that exists", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    # Like `python -m`: a factory in the current folder can be imported here and in every role.
    if "" not in sys.path:
        sys.path.insert(0, here)
    own_code_first()
    sys.exit(run(sys.argv[1:], forked=forked))


def _make_output_safe() -> None:
    """Replaces closed standard streams, and shows characters that their encoding lacks as escapes."""
    # In this order: a descriptor below 3 that stays free would go to the next socket, and prints into that.
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
