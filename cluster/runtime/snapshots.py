"""Snapshots of a run: what was measured, with verdict and findings, for the recorder.

Owns taking them; must not import ray or torch.
"""

from cluster.diagnosis.diagnosis import Diagnosis
from cluster.metrics.snapshot import Snapshot
from cluster.metrics.usage import MachineMeter
from cluster.runtime.pacer import Pacer
from cluster.runtime.run_context import RunContext


class Snapshots:
    """Takes the snapshots of one life of a run."""

    def __init__(self, context: RunContext, pacer: Pacer, diagnosis: Diagnosis) -> None:
        self._context = context
        self._pacer = pacer
        self._diagnosis = diagnosis
        self._usage = MachineMeter()

    def take(self, now: float) -> Snapshot:
        """Measures, diagnoses and records. now: monotonic."""
        measured = self._context.counters.snapshot(
            now,
            ledger=self._pacer.ledger(),
            pacing=self._pacer.pacing,
            best=self._context.selection.best,
            fleet=self._context.fleet.metrics(),
            usage=self._usage.due(),
            config=self._context.config,
        )
        recorder, diagnosed = self._context.recorder, self._diagnosis.take(measured)
        for finding in diagnosed.begun:
            recorder.warning(finding.text)
        for finding in diagnosed.over:
            recorder.info(f"{finding.title} is over; it began at update {finding.since_updates:,}")
        return recorder.snapshot(diagnosed.snapshot)
