"""The progress of a run, and its estimated time left.

Owns this estimate; pure, must not import any engine.
"""

from cluster.metrics.snapshot import Snapshot
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


def start_text(snapshot: Snapshot) -> str:
    """What a run that has not stepped an environment yet waits for."""
    wanted, up = (sum((roles or {}).values()) for roles in (snapshot.roles_wanted, snapshot.roles_up))
    if up < wanted:
        return f"starting: {up:.0f} of {quantity(wanted, 'process', 'processes')} ready"
    return "started: the first environment steps are under way"
