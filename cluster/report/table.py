"""The metrics of a run as a table.

Owns which metrics are columns; must not import torch or ray.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.report.runs import Line, leaves, read_run

if TYPE_CHECKING:
    from pandas import DataFrame

Cell = float | str | None


def load_metrics(run_dir: Path | str) -> "DataFrame | dict[str, list[Cell]]":
    """The metrics that a run recorded: a row for each snapshot, a column for each metric.

    A metric with labels has a column for each of their values, such as "role_seconds_total.actor.env", the
    verdict has "verdict.stage" and "verdict.text". docs/metrics.md describes the metrics. Histograms and the
    texts of warnings are left out. What a resumed run recorded twice is in the table once.

    Returns:
        A pandas.DataFrame where pandas is installed, with NaN for what was not known yet; otherwise a dict of
        the same columns, column -> values of all snapshots, None for what was not known yet.

    Raises:
        ConfigError: the folder holds no run.
    """
    lines = [dict(_cells(line)) for line in read_run(Path(run_dir)).metrics]
    names = dict.fromkeys(name for line in lines for name in line)
    table: dict[str, list[Cell]] = {name: [line.get(name) for line in lines] for name in names}
    try:
        from pandas import DataFrame
    except ModuleNotFoundError:
        return table
    return DataFrame(table)


def _cells(line: Line) -> Iterator[tuple[str, Cell]]:
    plain = {
        name: value for name, value in line.items() if not (isinstance(value, dict) and "counts" in value)
    }
    yield from ((name, value) for name, value in leaves(plain) if isinstance(value, int | float | str))
