"""Tries every registered environment as a run would: it works, or one sentence says why not.

Run as `python -m benchmarks.check_all_envs [PREFIX …]`, for instance with `ALE/ MinAtar/ MiniGrid-`; without
a prefix it takes all ids. Packages that register their ids when they are imported are named by --import. Each
id is probed and resolved in this process. Whatever is raised but an EnvError or a ConfigError is a defect,
and so is a sentence that holds a traceback; the script then exits with status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import time
import warnings
from collections import Counter

import gymnasium as gym

from actors.config import EnvConfig
from actors.envs import minatar
from actors.envs.errors import EnvError
from actors.envs.trial import try_out
from cluster.engines.threads import available_cores
from cluster.settings.config import ConfigError, RunConfig
from cluster.settings.resolve import resolve

DEFECT = "defect"


def outcome(env_id: str) -> tuple[str, str]:
    """ "works", "refused" or "defect", and the sentence that says why."""
    config = EnvConfig(env_id)
    try:
        try:
            probed = try_out(config)
        except EnvError as error:
            if "env.discretize=5" not in str(error):
                raise
            probed = try_out(EnvConfig(env_id, discretize=2))
        resolve(RunConfig(env=probed.config), probed.spec, available_cores())
    except (EnvError, ConfigError) as error:
        text = str(error)
        return (DEFECT if "Traceback" in text else "refused"), text
    except Exception as error:  # noqa: BLE001 - this is what the script looks for
        return DEFECT, f"{type(error).__name__}: {error}"
    return "works", "; ".join(probed.notes)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("prefixes", nargs="*", metavar="PREFIX")
    parser.add_argument("--import", dest="packages", action="append", default=[])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for package in ("ale_py", *options.packages):
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    with contextlib.suppress(ImportError):
        minatar.register()
    wanted = tuple(options.prefixes) or ("",)
    counts: Counter[str] = Counter()
    for env_id in sorted(name for name in gym.registry if name.startswith(wanted)):
        began = time.monotonic()
        kind, why = outcome(env_id)
        counts[kind] += 1
        print(f"{kind:8} {env_id:48} {time.monotonic() - began:5.1f} s  {why}", flush=True)
    print(", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())))
    return 1 if counts[DEFECT] else 0


if __name__ == "__main__":
    sys.exit(main())
