"""One checkpoint over living roles, answered by hand: complete, or failed with the name of who failed it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from qfleet_by_hand import ByHand
from qfleet_checkpoints import learner_state, run_state, write_segment

from cluster.checkpoints.checkpoint import (
    CheckpointStore,
    checkpoint_folders,
    read_checkpoint,
)
from cluster.checkpoints.checkpointer import Checkpointer, CheckpointResult
from replay_service.journal.durability import SealReply
from replay_service.journal.writer import SegmentFact

NOT_YET = SealReply(done=False)
FULL = SealReply(done=True)


class Checkpointing:
    """Two shards and a learner that are up, and a checkpoint that has begun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = ByHand("replay.num_shards=2")
        self.run.come_up()
        self.checkpointer = Checkpointer(
            self.run.fleet, CheckpointStore(folder, keep=2), lambda state: run_state(evaluation=state.version)
        )
        self.checkpointer.begin()

    def state(self, version: int = 5) -> None:
        """The learner answers with its state."""
        self.run.answer("learner", "state", learner_state(version))

    def slice(self, shard: int) -> None:
        """The shard has slices left."""
        self.run.answer(f"shard {shard}", "seal_slice", NOT_YET)

    def sealed(self, shard: int) -> None:
        """The shard has written its last slice into the folder that it was given."""
        (into,) = self.run.call(f"shard {shard}", "seal_slice").args
        reply = SealReply(done=True, segments=(write_segment(into, b"shard %d" % shard),))
        self.run.answer(f"shard {shard}", "seal_slice", reply)

    def finished(self) -> CheckpointResult:
        """The result, once the thread has written it."""
        deadline = time.monotonic() + 30
        while (result := self.checkpointer.result()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return result

    def failed(self) -> str:
        """The problem of the checkpoint, of which nothing is left."""
        result = self.checkpointer.result()
        assert result is not None
        assert result.saved is None
        assert list(self.folder.iterdir()) == []
        assert not self.checkpointer.busy
        return str(result.problem)


@pytest.fixture
def checkpointing(tmp_path: Path) -> Checkpointing:
    return Checkpointing(tmp_path)


def test_it_is_complete_once_all_slices_are_done_and_the_state_has_come(checkpointing: Checkpointing) -> None:
    checkpointing.slice(0)
    checkpointing.sealed(1)
    checkpointing.slice(0)
    checkpointing.state(version=5)
    assert checkpointing.checkpointer.result() is None
    assert checkpointing.checkpointer.busy
    checkpointing.sealed(0)
    result = checkpointing.finished()
    assert (result.problem, result.saved is not None and result.saved.number) == (None, 0)
    (folder,) = checkpoint_folders(checkpointing.folder)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.learner.version == 5
    assert checkpoint.manifest.run == run_state(evaluation=5)
    assert [file.name for file in checkpoint.manifest.files][1:] == [
        "shard-0/00000000-0.qfj",
        "shard-1/00000000-0.qfj",
    ]
    # The result is given once.
    assert checkpointing.checkpointer.result() is None
    assert not checkpointing.checkpointer.busy
    checkpointing.checkpointer.close()


def test_it_waits_for_the_learners_state(checkpointing: Checkpointing) -> None:
    for shard in (0, 1):
        checkpointing.sealed(shard)
    assert checkpointing.checkpointer.result() is None
    checkpointing.state()
    assert checkpointing.finished().saved is not None
    checkpointing.checkpointer.close()


def test_a_shard_that_dies_fails_it_once_the_others_are_done(checkpointing: Checkpointing) -> None:
    checkpointing.state()
    checkpointing.run.die(checkpointing.run.fleet.shards[1])
    # The other one still writes into the folder.
    assert checkpointing.checkpointer.result() is None
    checkpointing.sealed(0)
    assert checkpointing.failed() == "shard 1 died meanwhile"


def test_a_learner_that_dies_fails_it_once_the_shards_are_done(checkpointing: Checkpointing) -> None:
    checkpointing.sealed(0)
    checkpointing.run.die(checkpointing.run.fleet.learner)
    assert checkpointing.checkpointer.result() is None
    checkpointing.sealed(1)
    assert checkpointing.failed() == "learner died meanwhile"


def test_a_full_disk_of_a_shard_is_named(checkpointing: Checkpointing) -> None:
    checkpointing.state()
    checkpointing.sealed(0)
    checkpointing.run.answer("shard 1", "seal_slice", FULL)
    assert checkpointing.failed() == "the disk is full for shard 1"


def test_another_failure_of_a_shards_disk_is_told(checkpointing: Checkpointing) -> None:
    checkpointing.state()
    checkpointing.sealed(0)
    checkpointing.run.answer("shard 1", "seal_slice", SealReply(done=True, problem="[Errno 5] no luck"))
    assert checkpointing.failed() == "shard 1: [Errno 5] no luck"


def test_what_cannot_be_written_is_told(checkpointing: Checkpointing) -> None:
    checkpointing.state()
    checkpointing.sealed(0)
    # This shard has written on the disk of another machine.
    reply = SealReply(done=True, segments=(SegmentFact("00000000-0.qfj", 9, 0, 0, 1),))
    checkpointing.run.answer("shard 1", "seal_slice", reply)
    result = checkpointing.finished()
    assert result.saved is None
    assert "is not there, though shard 1 wrote it" in str(result.problem)
    assert list(checkpointing.folder.iterdir()) == []
    checkpointing.checkpointer.close()


def test_a_state_that_comes_too_late_does_not_get_into_the_next_one(checkpointing: Checkpointing) -> None:
    checkpointing.run.die(checkpointing.run.fleet.shards[0])
    checkpointing.sealed(1)
    assert checkpointing.failed() == "shard 0 died meanwhile"
    checkpointing.run.come_up()
    checkpointing.checkpointer.begin()
    checkpointing.state(version=5)  # the answer to the first request
    for shard in (0, 1):
        checkpointing.sealed(shard)
    assert checkpointing.checkpointer.result() is None
    checkpointing.state(version=9)
    checkpointing.finished()
    (folder,) = checkpoint_folders(checkpointing.folder)
    assert (folder.name, read_checkpoint(folder).learner.version) == ("checkpoint-000001", 9)
    checkpointing.checkpointer.close()
