"""The data flow by files: the trace finds the files that are known to be on the way, and none is long.

The trace is that of a real run of about three seconds.
"""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data_flow import FileOnTheWay, Tracer, trace  # noqa: E402

MOST_LINES = 450


@pytest.fixture(scope="module")
def files() -> dict[str, FileOnTheWay]:
    return {file.path: file for file in trace().files()}


def test_every_part_of_the_way_is_found(files: dict[str, FileOnTheWay]) -> None:
    on_the_way = {
        "actors/rollout.py": "EnvActor.rollout",
        "actors/policy.py": "MlpPolicy.load",
        "cluster/runtime/roles.py": "LearnerRole.learn",
        "learner/loop.py": "Learner.learn",
        "replay_service/codec.py": "encode",
        "replay_service/shard.py": "ReplayShard.insert",
        "replay_service/sum_tree.py": "SumTree.set",
    }
    missing = {path for path, function in on_the_way.items() if function not in files[path].functions}
    assert not missing
    # A class of fields alone: only methods that @dataclass wrote.
    assert "replay_service/messages.py" in files


def test_what_begins_or_ends_a_run_or_comes_by_the_clock_is_not_on_the_way(
    files: dict[str, FileOnTheWay],
) -> None:
    aside = (
        *("cluster/api.py", "cluster/cli.py", "cluster/engines/signals.py"),
        *("cluster/settings/", "cluster/show/", "cluster/diagnosis/", "cluster/record/recorder.py"),
    )
    assert not [path for path in files if path.startswith(aside)]


def test_no_file_on_the_way_is_long(files: dict[str, FileOnTheWay]) -> None:
    assert {path: file.lines for path, file in files.items() if file.lines > MOST_LINES} == {}


def test_the_architecture_tells_how_long_the_way_is(files: dict[str, FileOnTheWay]) -> None:
    """Within a twentieth, so that not every change of a file is a change of the page."""
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    now = re.search(r"^\| now \| (\d+) \| ([\d,]+) \|", page, re.MULTILINE)
    assert now is not None
    assert int(now[1]) == pytest.approx(len(files), rel=0.05)
    assert int(now[2].replace(",", "")) == pytest.approx(sum(file.lines for file in files.values()), rel=0.05)


def test_a_function_counts_that_runs_in_more_than_half_of_the_rounds(tmp_path: Path) -> None:
    for name in ("often.py", "rare.py"):
        (tmp_path / name).write_text("one\ntwo\n")
    ran = Counter({("often.py", "f"): 3, ("often.py", "g"): 2, ("rare.py", "h"): 2})
    tracer = Tracer(tmp_path, rounds=4, ran=ran)
    assert tracer.files() == [FileOnTheWay("often.py", 2, ("f",))]
