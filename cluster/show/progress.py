"""The progress of a run, and its estimated time left.

Owns this estimate; pure, must not import any engine.
"""

from cluster.metrics.snapshot import ByLabel, Snapshot
from cluster.settings.resolved import ResolvedStop
from cluster.wording import quantity


def progress(snapshot: Snapshot, stop: ResolvedStop) -> tuple[float | None, float | None]:
    """Progress to the nearest limit (0 to 1), and estimated seconds left; a target return is no limit.

    Both are None without a limit; the seconds are None before the first step.
    """
    shares = [
        done / limit
        for done, limit in (
            (snapshot.env_steps_total, stop.env_steps),
            (snapshot.updates_total, stop.updates),
            (snapshot.acting_seconds, stop.seconds),
        )
        if limit is not None
    ]
    if not shares:
        return None, None
    share = min(1.0, max(shares))
    return share, snapshot.run_seconds * (1.0 - share) / share if share > 0.0 else None


def is_starting(snapshot: Snapshot) -> bool:
    """Whether roles of the run are still starting, or started anew."""
    return _count(snapshot.roles_up) < _count(snapshot.roles_wanted)


def start_text(snapshot: Snapshot) -> str:
    """What a run that has not stepped an environment or updated yet waits for."""
    if not is_starting(snapshot):
        return "started: the first environment steps are under way"
    up, wanted = _count(snapshot.roles_up), _count(snapshot.roles_wanted)
    ready = f"starting: {up:.0f} of {quantity(wanted, 'process', 'processes')} ready"
    up_now = snapshot.roles_up or {}
    late = [role for role, number in (snapshot.roles_wanted or {}).items() if up_now.get(role, 0.0) < number]
    return f"{ready}, waiting for {', '.join(late)}"


def _count(roles: ByLabel | None) -> float:
    return sum((roles or {}).values())
