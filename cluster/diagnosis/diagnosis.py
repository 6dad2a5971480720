"""Live diagnosis: which findings hold now, since when, and which have just begun or ended.

Owns the window of recent snapshots and when a finding begins and ends; pure, imports no engine.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, replace

from cluster.diagnosis.bottleneck import stage_of, verdict_of
from cluster.diagnosis.detectors import DETECTORS, Detector, Reading
from cluster.metrics.snapshot import Finding, Snapshot, Stage, Verdict
from cluster.settings.resolved import ResolvedConfig

WINDOW = 64
"""Number of snapshots that detectors look back on: about a minute at one per second."""

LOOKS = 3
"""A finding begins after this many consecutive looks above its threshold, and ends after as many below half.

The verdict changes after as many looks that agree.
"""

_ENDS_BELOW = 0.5


@dataclass(frozen=True)
class Diagnosed:
    """A snapshot with verdict and findings in it, and the findings that began or ended with it."""

    snapshot: Snapshot
    begun: tuple[Finding, ...]
    over: tuple[Finding, ...]


@dataclass
class _Watch:
    """One detector over time. looks: consecutive looks that call for a change of its finding."""

    detector: Detector
    finding: Finding | None = None
    looks: int = 0
    since_updates: int = 0
    looked_at: Hashable = None

    def look(self, window: deque[Snapshot], config: ResolvedConfig) -> None:
        """Reads the detector if there are new data for it."""
        looks_at = self.detector.looks_at(window[-1])
        if not looks_at or looks_at == self.looked_at:
            return
        self.looked_at = looks_at
        reading = self.detector.read(window, config)
        if reading is None:
            return
        changes = reading.strength < _ENDS_BELOW if self.finding else reading.strength >= 1.0
        if self.finding and not changes:
            self.finding = self._finding(reading)
        if not self.finding and self.looks == 0:
            self.since_updates = window[-1].updates_total
        self.looks = self.looks + 1 if changes else 0
        if self.looks == LOOKS:
            self.looks = 0
            self.finding = None if self.finding else self._finding(reading)

    def _finding(self, reading: Reading) -> Finding:
        texts = (reading.evidence, reading.cause, reading.cure)
        return Finding(self.detector.name, self.since_updates, *texts)


class Diagnosis:
    """Follows one run through all its lives in this process."""

    def __init__(self, config: ResolvedConfig) -> None:
        """config: the run's settings, which cures name with their values."""
        self._config = config
        self._window: deque[Snapshot] = deque(maxlen=WINDOW)
        self._watches = [_Watch(detector) for detector in DETECTORS]
        self._stage: Stage | None = None
        self._recent_stages: deque[Stage | None] = deque(maxlen=LOOKS)

    def take(self, snapshot: Snapshot) -> Diagnosed:
        """Looks at the next snapshot of the run."""
        self._window.append(snapshot)
        before = self._findings()
        for watch in self._watches:
            watch.look(self._window, self._config)
        after = self._findings()
        completed = replace(
            snapshot,
            verdict=self._verdict(),
            warnings=tuple(after.values()),
            diagnosis_active={detector.name: int(detector.name in after) for detector in DETECTORS},
        )
        return Diagnosed(
            completed,
            begun=tuple(finding for name, finding in after.items() if name not in before),
            over=tuple(finding for name, finding in before.items() if name not in after),
        )

    def _findings(self) -> dict[str, Finding]:
        """Name -> finding that holds now."""
        return {watch.detector.name: watch.finding for watch in self._watches if watch.finding is not None}

    def _verdict(self) -> Verdict | None:
        stage = stage_of(self._window, self._config)
        self._recent_stages.append(stage)
        # Before the first update, the stage is no estimate.
        sure = self._stage is None or self._window[-1].updates_total == 0
        if stage is not None and (sure or self._recent_stages.count(stage) == LOOKS):
            self._stage = stage
        return verdict_of(self._stage, self._window, self._config) if self._stage else None
