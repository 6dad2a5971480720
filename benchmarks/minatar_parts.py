"""Each convolutional part alone on MinAtar Breakout: pooling, IMPALA, spectral norm, twice the width.

Run as `python -m benchmarks.minatar_parts [PART ...] [--runs FOLDER]`: for each part a serial run of one
million frames by `configs/minatar.yaml` with this part, 6 minutes to over two hours of a core. It can be
stopped: the next call resumes a run and repeats none that is done. The protocol is that of
`benchmarks.minatar`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.minatar import DATA as WHOLE_DATA
from benchmarks.minatar import PAPER_DQN, Run, one_run, table, updated
from benchmarks.processor import processor
from benchmarks.recorded_runs import read_runs

DATA = WHOLE_DATA.with_name("minatar_parts.json")
"""Runs as in minatar.json; `game` is the part."""
FRAMES = 1_000_000
_IMPALA = "learner.network=impala_cnn"
PARTS: Mapping[str, tuple[str, ...]] = {
    "pooling": ("learner.pool_size=4",),
    "impala": (_IMPALA,),
    "impala-spectral-norm": (_IMPALA, "learner.spectral_norm=true"),
    "impala-twice-as-wide": (_IMPALA, "learner.impala_width=2"),
}
"""Part -> the settings that add it to configs/minatar.yaml."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.minatar_parts", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: {', '.join(PARTS)}")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=DATA, help="default: docs/minatar_parts.json")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    print(processor(), flush=True)
    for part in options.parts or PARTS:
        if any(run.game == part for run in read_runs(options.data, Run)):
            continue
        played = one_run("Breakout", 0, FRAMES, options.runs / part, PARTS[part])
        with updated(options.data) as runs:
            runs.append(replace(played, game=part))
    print(table(read_runs(options.data, Run), dict.fromkeys(PARTS, PAPER_DQN["Breakout"]), "part"))


if __name__ == "__main__":
    main()
