"""Recovery, answered by hand: from what a new learner goes on, what a new shard brings back, what is due."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from qfleet_by_hand import ByHand
from qfleet_checkpoints import commit, learner_state
from qfleet_reports import evaluation_report, learn_report, shard_status

from cluster.checkpoints import recovery
from cluster.checkpoints.checkpoint import CheckpointStore, checkpoint_folders, read_checkpoint
from cluster.checkpoints.recovery import KEEP_STATE_SECONDS, Recovery
from cluster.checkpoints.resume import Resumed
from cluster.engines.engine import Ref
from learner.core import LearnerState
from replay_service.journal.durability import SealReply
from replay_service.journal.recovery import DamagedSegment, RecoveryReport


class Recovering:
    """A run with its recovery. published: the weights that roles were given; restored: how often all was."""

    def __init__(
        self,
        folder: Path,
        *overrides: str,
        resumed: Resumed | None = None,
        initial_weights: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> None:
        self.run = ByHand("replay.num_shards=2", *overrides, folder=folder, deterministic=deterministic)
        self.counters = self.run.context.counters
        self.published: list[Ref[np.ndarray] | None] = []
        self.restored = 0
        self.recovery = Recovery(
            self.run.context,
            publish=self.published.append,
            restored=self._restored,
            resumed=resumed,
            initial_weights=initial_weights,
        )
        self.run.come_up()

    def _restored(self) -> None:
        self.restored += 1

    def learn(self, version: int, updates: int) -> None:
        report = learn_report(version=version, updates=updates, statuses=())
        self.counters.take_learning(report, 16)

    def keep_state(self, version: int, *, seconds: float = 0.0) -> None:
        """The learner is asked for its state, so many seconds from now, and answers."""
        self.recovery.tick(time.monotonic() + seconds)
        self.run.answer("learner", "state", learner_state(version))

    def replace_learner(self) -> None:
        """The learner dies; the next one comes up."""
        self.recovery.restore_replacement(self.run.die(self.run.fleet.learner))
        self.run.come_up()

    @property
    def given(self) -> LearnerState:
        """The state that the new learner is to go on from."""
        (state,) = self.run.call("learner", "restore").args
        assert isinstance(state, LearnerState)
        return state

    @property
    def said(self) -> list[str]:
        return self.run.recorder.events


def test_a_new_learner_goes_on_from_the_state_kept_last(tmp_path: Path) -> None:
    here = Recovering(tmp_path)
    commit(CheckpointStore(tmp_path, keep=2), 2)
    here.learn(version=4, updates=4)
    here.keep_state(4)
    here.learn(version=20, updates=16)
    here.replace_learner()
    assert here.given.version == 4
    here.run.answer("learner", "restore", 4)
    assert here.counters.version == 4
    assert here.counters.updates == 20  # those that are lost have been made
    assert len(here.published) == 1
    assert here.published[0] is not None
    assert here.said == ["learner goes on from version 4; 16 updates are lost"]


def test_without_a_kept_state_it_goes_on_from_the_newest_checkpoint(tmp_path: Path) -> None:
    here = Recovering(tmp_path)
    store = CheckpointStore(tmp_path, keep=2)
    for version in (2, 3):
        commit(store, version)
    here.learn(version=4, updates=4)
    here.replace_learner()
    assert here.given.version == 3


def test_without_either_it_begins_anew_and_the_weights_are_withdrawn(tmp_path: Path) -> None:
    here = Recovering(tmp_path)
    here.learn(version=4, updates=4)
    here.replace_learner()
    assert not here.run.is_asked("learner", "restore")
    assert here.counters.version == 0
    assert here.published == [None]
    assert here.said == ["learner begins anew: no state was kept yet"]


def test_it_begins_anew_with_the_weights_that_were_given(tmp_path: Path) -> None:
    flat = np.arange(3, dtype=np.float32)
    here = Recovering(tmp_path, initial_weights=flat)
    assert here.recovery.starts_from_weights
    assert here.recovery.restoring
    here.run.answer("learner", "start_from", 0)
    assert (here.recovery.restoring, here.restored) == (False, 1)
    here.learn(version=4, updates=4)
    here.replace_learner()
    assert here.run.call("learner", "start_from").args == (flat,)
    here.run.answer("learner", "start_from", 0)
    assert [weights is None for weights in here.published] == [False, True, False]
    assert here.restored == 1


def test_the_state_is_kept_every_few_seconds_once_there_is_something_to_keep(tmp_path: Path) -> None:
    here = Recovering(tmp_path)
    here.recovery.tick(time.monotonic())
    assert not here.run.is_asked("learner", "state")
    here.learn(version=4, updates=4)
    here.recovery.tick(time.monotonic())
    here.recovery.tick(time.monotonic() + 100.0)
    assert [call.method for call in here.run.asked] == ["state"]  # one request at a time
    here.run.answer("learner", "state", learner_state(4))
    here.recovery.tick(time.monotonic() + 0.5 * KEEP_STATE_SECONDS)
    assert here.run.asked == []
    here.keep_state(8, seconds=2.0 * KEEP_STATE_SECONDS)
    here.replace_learner()
    assert here.given.version == 8


def test_a_state_that_died_with_the_learner_is_asked_for_again(tmp_path: Path) -> None:
    here = Recovering(tmp_path)
    here.learn(version=4, updates=4)
    here.recovery.tick(time.monotonic())
    here.replace_learner()
    here.keep_state(0)
    here.replace_learner()
    assert here.given.version == 0


@pytest.mark.parametrize("held", [0, 60])
def test_a_new_shard_says_what_it_has_and_is_called_from_now_on(tmp_path: Path, held: int) -> None:
    here = Recovering(tmp_path)
    here.counters.shards.take([shard_status(shard=1, count=100, mass=50.0)])
    dead = here.run.fleet.shards[1]
    assert here.recovery.note_loss(dead) == " with 100 transitions (mass 50)"
    assert here.recovery.note_loss(here.run.fleet.learner) == ""
    here.recovery.restore_replacement(here.run.die(dead))
    here.run.come_up()
    assert not here.run.is_asked("learner", "replace_shard")
    damaged = DamagedSegment("0001.qfj", "its checksum differs", 3, 400)
    report = RecoveryReport(torn_bytes=17, damaged=(damaged,)) if held else None
    status = shard_status(shard=1, incarnation=1, count=held, mass=held / 2)
    here.run.answer("shard 1", "recovery", (report, status))
    for role in ("learner", "actor 0", "actor 1"):
        assert here.run.call(role, "replace_shard").args == (1, here.run.fleet.shards[1].handle)
    if held:
        assert here.said == [
            "shard 1 is back with 60 transitions (mass 30) from its journal; 17 bytes of an unfinished "
            "record were removed",
            "warning: shard 1, journal segment 0001.qfj: its checksum differs; skipped 3 records and "
            "400 bytes",
        ]
    else:
        assert here.said == ["shard 1 is back and empty: 100 transitions (mass 50) are lost"]


def test_a_shard_that_dies_before_it_says_what_it_holds_adds_nothing_to_the_loss(tmp_path: Path) -> None:
    here = Recovering(tmp_path)
    here.counters.shards.take([shard_status(shard=1, count=100, mass=50.0)])
    first = here.run.fleet.shards[1]
    assert here.recovery.note_loss(first) == " with 100 transitions (mass 50)"
    second = here.run.die(first)
    assert here.recovery.note_loss(second) == ""
    here.recovery.restore_replacement(here.run.die(second))
    here.run.come_up()
    here.run.answer("shard 1", "recovery", (None, shard_status(shard=1, incarnation=2)))
    assert here.said == ["shard 1 is back and empty: 100 transitions (mass 50) are lost"]


@pytest.fixture
def resumed(tmp_path: Path) -> Resumed:
    """A run that goes on from version 200."""
    commit(CheckpointStore(tmp_path / "before", keep=1), 200)
    checkpoint = read_checkpoint(checkpoint_folders(tmp_path / "before")[0])
    return Resumed(checkpoint.manifest, checkpoint.learner, {})


def test_a_resumed_run_waits_until_all_is_as_it_was(tmp_path: Path, resumed: Resumed) -> None:
    here = Recovering(
        tmp_path, "replay.persist=checkpoint", "checkpoint.every_seconds=0.001", resumed=resumed
    )
    here.learn(version=200, updates=200)
    assert here.given.version == 200
    here.run.answer("shard 1", "recovery", (None, shard_status(shard=1)))
    here.run.answer("learner", "restore", 200)
    assert (here.recovery.restoring, here.restored) == (True, 0)
    assert not here.recovery.checkpoint_is_due()
    assert not here.recovery.has_unsaved_progress()
    here.run.answer("shard 0", "recovery", (None, shard_status(shard=0)))
    assert (here.recovery.restoring, here.restored) == (False, 1)
    assert len(here.published) == 1
    # Nobody is lost or new, so that there is nothing to say.
    assert here.said == []
    assert not here.run.is_asked("learner", "replace_shard")


def test_a_shard_that_reads_for_long_says_that_it_moves(tmp_path: Path, resumed: Resumed) -> None:
    here = Recovering(tmp_path, resumed=resumed)
    for slices in range(1, 4):
        here.run.answer("shard 0", "recovery", None)
        assert here.recovery.slices_read == slices
    here.run.answer("shard 0", "recovery", (None, shard_status(shard=0)))
    here.run.answer("shard 1", "recovery", (None, shard_status(shard=1)))
    here.run.answer("learner", "restore", 200)
    assert not here.recovery.restoring
    assert here.recovery.slices_read == 3


def test_a_shard_that_dies_while_the_run_is_restored_is_waited_for(tmp_path: Path, resumed: Resumed) -> None:
    here = Recovering(tmp_path, resumed=resumed)
    here.run.answer("shard 1", "recovery", (None, shard_status(shard=1)))
    here.run.answer("learner", "restore", 200)
    here.recovery.restore_replacement(here.run.die(here.run.fleet.shards[0]))
    here.run.come_up()
    assert here.recovery.restoring
    here.run.answer("shard 0", "recovery", (None, shard_status(shard=0, incarnation=1)))
    assert (here.recovery.restoring, here.restored) == (False, 1)


@pytest.mark.parametrize(
    ("overrides", "deterministic", "due"),
    [
        (["replay.persist=none", "checkpoint.every_updates=10"], False, []),
        (["replay.persist=checkpoint", "checkpoint.every_updates=10"], False, [12, 20]),
        (["replay.persist=checkpoint", "checkpoint.every_updates=10"], True, [12, 20]),
        (["replay.persist=checkpoint", "checkpoint.every_seconds=1e-9"], False, [4, 8, 12, 16, 20]),
        (["replay.persist=checkpoint", "checkpoint.every_seconds=1e-9"], True, []),
        # A journal is worth little without a learner that goes on with it.
        (["replay.persist=continuous"], False, [4]),
    ],
)
def test_when_a_checkpoint_is_due(
    tmp_path: Path, overrides: list[str], deterministic: bool, due: list[int]
) -> None:
    here = Recovering(tmp_path, "checkpoint.every_seconds=1e9", *overrides, deterministic=deterministic)
    assert not here.recovery.checkpoint_is_due()
    versions = []
    for version in range(4, 24, 4):
        here.learn(version=version, updates=4)
        if here.recovery.checkpoint_is_due():
            versions.append(version)
            here.recovery.begin_checkpoint()
            assert here.recovery.checkpointing
    assert versions == due


def test_a_checkpoint_soon_is_due_whatever_the_clock_says(tmp_path: Path) -> None:
    here = Recovering(tmp_path, "replay.persist=checkpoint", "checkpoint.every_seconds=1e9")
    here.learn(version=4, updates=4)
    assert not here.recovery.checkpoint_is_due()
    here.recovery.checkpoint_soon("the power goes")
    assert here.recovery.checkpoint_is_due()
    here.recovery.tick(time.monotonic())
    assert here.recovery.checkpointing
    assert not here.recovery.checkpoint_is_due()
    assert here.said == ["warning: the power goes; a checkpoint is taken now"]


def test_there_is_news_once_something_was_inserted_or_learned(tmp_path: Path) -> None:
    here = Recovering(tmp_path, "replay.persist=checkpoint")
    here.counters.shards.take([shard_status()])
    assert not here.recovery.has_unsaved_progress()  # nothing was learned at all
    here.learn(version=4, updates=4)
    assert here.recovery.has_unsaved_progress()
    here.recovery.begin_checkpoint()
    assert not here.recovery.has_unsaved_progress()
    for shard in (0, 1):
        here.recovery.restore_replacement(here.run.die(here.run.fleet.shards[shard]))
    here.run.die(here.run.fleet.learner)
    assert here.recovery.take_finished() is None
    assert not here.recovery.checkpointing
    assert not here.recovery.has_unsaved_progress()
    assert any("died meanwhile; the one before stays" in text for text in here.said)
    here.counters.shards.take([shard_status(inserted_transitions_total=151)])
    assert here.recovery.has_unsaved_progress()


def test_checkpoints_that_were_saved_are_told_and_counted_and_the_old_ones_removed(tmp_path: Path) -> None:
    here = Recovering(tmp_path, "replay.persist=checkpoint", "checkpoint.keep=1")
    for version in (4, 8, 12):
        here.learn(version=version, updates=4)
        here.counters.take_evaluation(evaluation_report(returns=(float(version),)))
        here.recovery.begin_checkpoint()
        here.run.answer("learner", "state", learner_state(version))
        for shard in (0, 1):
            here.run.answer(f"shard {shard}", "seal_slice", SealReply(done=True, segments=()))
        while (saved := here.recovery.take_finished()) is None:
            time.sleep(0.001)
        assert saved.name == f"checkpoint-{version // 4 - 1:06d}"
    here.recovery.close()
    (newest,) = checkpoint_folders(tmp_path)
    assert newest.name == "checkpoint-000002"
    assert [text.partition(":")[0] for text in here.said] == [
        f"checkpoint {number} after 0 env steps" for number in range(3)
    ]
    run = read_checkpoint(newest).manifest.run
    assert run.counters == here.counters.state()
    assert run.incarnations["shard 1"] == 0


def test_a_checkpoint_counts_as_of_the_version_of_its_learner(tmp_path: Path) -> None:
    here = Recovering(tmp_path, "replay.persist=checkpoint")
    here.learn(version=10, updates=10)
    here.recovery.begin_checkpoint()
    here.learn(version=14, updates=4)  # reported before the state of version 10 has come
    here.run.answer("learner", "state", learner_state(10))
    for shard in (0, 1):
        here.run.answer(f"shard {shard}", "seal_slice", SealReply(done=True, segments=()))
    while here.recovery.take_finished() is None:
        time.sleep(0.001)
    here.recovery.close()
    counters = read_checkpoint(checkpoint_folders(tmp_path)[0]).manifest.run.counters
    assert (counters.version, counters.updates, counters.sampled_transitions) == (10, 10, 160)


def test_without_the_learner_weights_and_checkpoint_are_of_the_state_that_was_kept(tmp_path: Path) -> None:
    here = Recovering(tmp_path, "replay.persist=checkpoint")
    here.learn(version=10, updates=10)
    here.recovery.use_kept_state()
    assert not here.recovery.has_unsaved_progress()  # none was kept yet
    here = Recovering(tmp_path, "replay.persist=checkpoint")
    here.learn(version=10, updates=10)
    here.keep_state(10)
    here.learn(version=14, updates=4)
    here.recovery.use_kept_state()
    assert here.run.notes.weights["latest"] == (10.0, "10")
    assert here.recovery.has_unsaved_progress()
    here.recovery.begin_checkpoint()
    assert not here.run.is_asked("learner", "state")
    for shard in (0, 1):
        here.run.answer(f"shard {shard}", "seal_slice", SealReply(done=True, segments=()))
    while here.recovery.take_finished() is None:
        time.sleep(0.001)
    here.recovery.close()
    assert read_checkpoint(checkpoint_folders(tmp_path)[0]).learner.version == 10


def test_a_slow_last_checkpoint_says_what_to_expect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_SAY_SECONDS", 0.0)
    here = Recovering(tmp_path, "replay.persist=checkpoint")
    for version, last in ((4, True), (8, True), (12, False)):
        here.learn(version=version, updates=4)
        here.recovery.begin_checkpoint(last=last)
        here.run.answer("learner", "state", learner_state(version))
        for shard in (0, 1):
            here.run.answer(f"shard {shard}", "seal_slice", SealReply(done=True, segments=()))
        while here.recovery.take_finished() is None:
            time.sleep(0.001)
    here.recovery.close()
    assert [text.partition(" ")[0] for text in here.said] == ["checkpoint", "the", "checkpoint", "checkpoint"]
    assert "if the run is killed meanwhile, the one before stays" in here.said[1]


def test_a_folder_that_cannot_be_written_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    here = Recovering(tmp_path / "file", "replay.persist=checkpoint")
    here.learn(version=4, updates=4)
    here.recovery.begin_checkpoint()
    assert not here.recovery.checkpointing
    (warning,) = here.said
    assert warning.startswith(f"warning: no checkpoint: {tmp_path / 'file'} cannot be written (")
    # Once, however often it is tried.
    here.recovery.begin_checkpoint()
    assert len(here.said) == 1


def test_a_failing_checkpoint_is_warned_of_once_whatever_its_files_are_called(tmp_path: Path) -> None:
    here = Recovering(tmp_path, "replay.persist=checkpoint")
    for number in range(3):
        here.learn(version=4 * (number + 1), updates=4)
        here.recovery.begin_checkpoint()
        here.run.answer("learner", "state", learner_state(4 * (number + 1)))
        problem = f"[Errno 2] No such file or directory: 'run/replay/shard-0/0000000{number}.qfj'"
        here.run.answer("shard 0", "seal_slice", SealReply(done=True, problem=problem))
        here.run.answer("shard 1", "seal_slice", SealReply(done=True, segments=()))
        while here.recovery.checkpointing:
            here.recovery.take_finished()
    here.recovery.close()
    (warning,) = here.said
    assert warning.startswith("warning: no checkpoint: shard 0: [Errno 2] No such file")
