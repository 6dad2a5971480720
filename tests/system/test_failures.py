"""Every failure of docs/failures.md, each injected for real into a real run that has to go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qfleet_processes import adopting_orphans
from qfleet_test_roles import Counter

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.failures import FAILURES, CannotBeInjectedError, Failure, Outcome, Runtime  # noqa: E402
from cluster.engines.engine import Need, RoleOutOfMemory  # noqa: E402

# What each one is bound to say.
SAYS = {
    "actor": ("actor 0 (process", "died; replaced by incarnation 1, 99 replacements left"),
    "shard-journal": ("shard 0 is back with", "from its journal"),
    "shard-memory": ("shard 0 is back and empty",),
    "learner": ("learner goes on from version",),
    "rank": ("learner rank 1 (process", "all 2 ranks are replaced", "learner goes on from version"),
    "evaluator": ("evaluator (process",),
    "memory": ("actor 0 (process", "replaced by incarnation 1"),
    "frozen-actor": ("actor 0", "replaced by incarnation 1"),
    "frozen-shard": ("did not answer for", "shard 0 is back with"),
    "frozen-learner": ("learner (process", "did not answer for", "learner goes on from version"),
    "frozen-rank": ("did not answer for", "all 2 ranks are replaced", "learner goes on from version"),
    "frozen-evaluator": ("evaluator (process", "did not answer for"),
    "driver": ("resumed from checkpoint",),
    "machine": ("resumed from checkpoint",),
    "disk": ("goes on in memory only",),
    "raylet": ("learner goes on from version", "99 replacements left"),
    "node": ("shard 0 is back with", "99 replacements left"),
    "drain": ("a machine is about to go, with", "a checkpoint is taken now"),
    "head": ("resumed from checkpoint",),
}
# Beyond the limit of what is frozen; far more than docs/failures.md measured: machines that test are busy.
MOST_SECONDS = 60.0


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
    """What a killed driver leaves is found among this process's children."""
    with adopting_orphans():
        yield


def play(failure: Failure, runtime: Runtime, folder: Path) -> Outcome:
    try:
        return failure.play(folder, runtime)
    except CannotBeInjectedError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "runtime"),
    [
        pytest.param(failure, runtime, id=f"{failure.name}-{runtime}")
        for failure in FAILURES
        for runtime in failure.runtimes
    ],
)
def test_a_run_survives(failure: Failure, runtime: Runtime, tmp_path: Path) -> None:
    outcome = play(failure, runtime, tmp_path)
    said = "\n".join(outcome.said)
    for text in SAYS[failure.name]:
        assert text in said, said
    if failure.name == "memory":
        # Ray tells of its own kills only, not of the kernel's.
        how = "was ended because its machine ran out of memory" if runtime == "local" else "died"
        assert f"{how}; replaced by incarnation 1" in said, said
    # A machine that goes costs one replacement, however many roles were on it.
    assert "98 replacements left" not in said, said
    assert outcome.seconds - outcome.limit_seconds < MOST_SECONDS
    if failure.name in ("actor", "evaluator", "shard-journal", "frozen-shard", "node"):
        assert "no transition" in outcome.lost or "under way" in outcome.lost


@pytest.mark.slow
def test_a_role_that_ray_ends_for_lack_of_memory_counts_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.engines.ray_engine import RayEngine
    from cluster.engines.ray_private import LEAN

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support"))
    # Every machine has more in use than this, so that Ray ends whatever it finds.
    monkeypatch.setitem(LEAN, "RAY_memory_monitor_refresh_ms", "100")
    monkeypatch.setitem(LEAN, "RAY_memory_usage_threshold", "0.001")
    engine = RayEngine(private=True)
    try:
        engine.start()
        counter = engine.spawn("counter 3", Counter, 0, need=Need(cpus=0.0))
        with pytest.raises(RoleOutOfMemory, match="low on memory") as death:
            engine.get(engine.call(counter, Counter.block)[0])
        assert death.value.role == "counter 3"
    finally:
        engine.close()
