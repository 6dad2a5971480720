"""Live diagnosis: which findings hold now, since when, and what the run is to be told of them.

Owns the window of recent snapshots and when a finding begins and ends; pure, imports no engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from cluster.diagnosis.bottleneck import Stage, sentence, stage_of
from cluster.diagnosis.detectors import DETECTORS, Detector, FindingName, Reading, Severity
from cluster.metrics.snapshot import Snapshot
from cluster.settings.resolved import ResolvedConfig

WINDOW = 64
"""Snapshots that detectors look back on: a minute at one a second."""

LOOKS = 3
"""A finding begins with so many looks in a row above its threshold, and ends with as many below half.

The verdict changes with as many that agree.
"""

_ENDS_BELOW = 0.5


@dataclass(frozen=True)
class Finding:
    """Something wrong with learning, from the first look that showed it. The words are of the newest look."""

    name: FindingName
    severity: Severity
    since_env_steps: int
    since_updates: int
    evidence: str
    cause: str
    cure: str

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ").replace(" q", " Q")

    @property
    def text(self) -> str:
        """One line; what stands before the first colon is the title."""
        return f"{self.title}: {self.evidence}. Cause: {self.cause}. Cure: {self.cure}"


@dataclass
class _Watch:
    """One detector's course: looks in a row that speak for a change, and what was last looked at."""

    detector: Detector
    finding: Finding | None = None
    looks: int = 0
    since: tuple[int, int] = (0, 0)
    looked_at: Hashable = field(default=None)

    def look(self, window: deque[Snapshot], config: ResolvedConfig) -> None:
        now = window[-1]
        looks_at = self.detector.looks_at(now)
        if not looks_at or looks_at == self.looked_at:
            return
        self.looked_at = looks_at
        reading = self.detector.read(window, config)
        if reading is None:
            return
        if self.finding is None:
            self._may_begin(reading, now)
        else:
            self._may_end(reading, self.finding)

    def _may_begin(self, reading: Reading, now: Snapshot) -> None:
        if reading.strength < 1.0:
            self.looks = 0
            return
        if self.looks == 0:
            self.since = (now.env_steps_total, now.updates_total)
        self.looks += 1
        if self.looks == LOOKS:
            self.looks = 0
            words = (reading.evidence, reading.cause, reading.cure)
            self.finding = Finding(self.detector.name, reading.severity, *self.since, *words)

    def _may_end(self, reading: Reading, finding: Finding) -> None:
        if reading.strength >= _ENDS_BELOW:
            self.looks = 0
            self.finding = replace(finding, evidence=reading.evidence, cause=reading.cause, cure=reading.cure)
            return
        self.looks += 1
        if self.looks == LOOKS:
            self.looks = 0
            self.finding = None


class Diagnosis:
    """Follows one run, over all lives of its coordinator in this process."""

    def __init__(self, config: ResolvedConfig) -> None:
        """config: the resolved one, whose settings cures name."""
        self._config = config
        self._window: deque[Snapshot] = deque(maxlen=WINDOW)
        self._watches = [_Watch(detector) for detector in DETECTORS]
        self._stage: Stage | None = None
        self._other_stages: list[Stage] = []

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What holds now."""
        return tuple(watch.finding for watch in self._watches if watch.finding is not None)

    def take(self, snapshot: Snapshot) -> tuple[Snapshot, tuple[str, ...]]:
        """The snapshot with verdict and warnings in it, and an event for each finding that began or ended."""
        if self._window and _begins_anew(self._window[-1], snapshot):
            self._window.clear()
        self._window.append(snapshot)
        before = {finding.name: finding for finding in self.findings}
        for watch in self._watches:
            watch.look(self._window, self._config)
        after = {finding.name: finding for finding in self.findings}
        events = [f"warning: {after[name].text}" for name in after if name not in before]
        events += [
            f"over: {finding.title}, which began at update {finding.since_updates:,}"
            for name, finding in before.items()
            if name not in after
        ]
        completed = replace(
            snapshot,
            verdict=self._verdict(),
            warnings=tuple(finding.text for finding in after.values()),
            diagnosis_active={
                watch.detector.name: int(watch.detector.name in after) for watch in self._watches
            },
        )
        return completed, tuple(events)

    def _verdict(self) -> str | None:
        stage = stage_of(self._window, self._config)
        if stage is None or stage == self._stage:
            self._other_stages.clear()
        else:
            self._other_stages.append(stage)
            if self._stage is None or self._other_stages[-LOOKS:] == [stage] * LOOKS:
                self._stage = stage
                self._other_stages.clear()
        return None if self._stage is None else sentence(self._stage, self._window, self._config)


def _begins_anew(before: Snapshot, now: Snapshot) -> bool:
    """Whether a new coordinator counts: what it sums up began at 0 again."""
    return _worked(now) < _worked(before)


def _worked(snapshot: Snapshot) -> float:
    return sum((snapshot.role_seconds_total or {}).get("coordinator", {}).values())
