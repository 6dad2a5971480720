"""kill -9 of a shard under load: no acknowledged transition is lost or doubled, no byte is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replay_service.block import BlockSchema, FrameField, TransitionBlock
from replay_service.codec import encode
from replay_service.journal.segments import segment_paths
from replay_service.messages import PriorityUpdate, SampleRequest

CHILD = Path(__file__).parents[1] / "support" / "shard_process.py"
ROOT = Path(__file__).resolve().parents[3]
SCHEMA = BlockSchema((FrameField("image", "|u1", (32, 32)),), 2, 2)
CAPACITY = 2_000
# Few and small enough that replies never fill the socket: both sides would wait for each other.
IN_FLIGHT = 6


class _Process:
    """One incarnation of the shard, calls answered in order."""

    def __init__(self, folder: Path, incarnation: int) -> None:
        with Listener(family="AF_UNIX") as listener:
            self._process = subprocess.Popen(
                [sys.executable, CHILD, listener.address, folder, str(incarnation)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            self.connection: Connection = listener.accept()

    def ask(self, method: str, *arguments: Any) -> Any:
        self.connection.send((method, arguments))
        return self.connection.recv()

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        assert self._process.wait(30) == -signal.SIGKILL
        self.connection.close()


class _Load:
    """Two writers' pushes in a known order, draws, priorities and checkpoints.

    A transition's reward is its number.
    """

    def __init__(self, folder: Path, random_block: Callable[..., TransitionBlock], seed: int) -> None:
        self.folder = folder
        self.random_block = random_block
        self.rng = np.random.default_rng(seed)
        self.blocks: list[TransitionBlock] = []
        self.acknowledged = 0
        self.transitions = 0
        self.td_errors: dict[float, set[float]] = defaultdict(set)

    def new_block(self) -> None:
        # From a few KB to most of a MB, so that the kill often comes in the middle of a write.
        count = int(self.rng.choice([1, 30, 300]))
        block = self.random_block(
            SCHEMA,
            self.rng,
            num_transitions=count,
            num_frames=count + 2,
            writer=len(self.blocks) % 2,
            sequence=len(self.blocks) // 2,
        )
        reward = np.arange(self.transitions, self.transitions + count).astype(np.float32)
        self.transitions += count
        self.blocks.append(replace(block, reward=reward))

    def run(self, process: _Process, replies: int) -> None:
        """Sends without waiting for each reply, reads so many replies, and kills."""
        pending: deque[str] = deque()
        sent = self.acknowledged
        update: PriorityUpdate | None = None
        for _ in range(replies):
            while len(pending) < IN_FLIGHT:
                method = str(self.rng.choice(["insert", "insert", "insert", "exchange", "seal_slice"]))
                if method == "insert" or not sent:
                    method = "insert"
                    self.new_block()
                    process.connection.send((method, (encode(self.blocks[sent]),)))
                    sent += 1
                elif method == "exchange":
                    process.connection.send((method, (update, SampleRequest((4,)))))
                    update = None
                else:
                    process.connection.send((method, (self.folder / "checkpoint",)))
                pending.append(method)
            method, reply = pending.popleft(), process.connection.recv()
            if method == "insert":
                assert reply.accepted
                self.acknowledged += 1
            elif method == "exchange":
                update = PriorityUpdate(reply.keys, self.rng.random(4, np.float32))
                for number, td_error in zip(reply.reward.tolist(), update.td_errors.tolist(), strict=True):
                    self.td_errors[number].add(td_error)
        # Waits for nothing in the shard, so that the kill comes at any point of its work.
        time.sleep(self.rng.uniform(0.0, 0.002))
        process.kill()

    def check(self, process: _Process) -> None:
        """Everything acknowledged is there, as sent and in order; then sends the rest again."""
        held, status, report = process.ask("look")
        assert report.damaged == ()
        ends = np.cumsum([block.num_transitions for block in self.blocks]).tolist()
        assert status.earlier_transitions_total in [0, *ends]
        kept = ([0, *ends]).index(status.earlier_transitions_total)
        assert kept >= self.acknowledged, "an acknowledged push is lost"
        assert status.earlier_env_steps_total == sum(block.env_steps for block in self.blocks[:kept])
        end = status.earlier_transitions_total
        begin = max(0, end - CAPACITY)
        np.testing.assert_array_equal(held["reward"], np.arange(begin, end))
        images, priorities = _windows(self.blocks[:kept])
        assert held["image"].tobytes() == images[-(end - begin) :].tobytes() or end == 0
        for number, inserted in zip(range(begin, end), priorities[-(end - begin) :], strict=False):
            given = self.td_errors.get(float(number), set()) | {float(inserted)}
            assert float(held["td_error"][number - begin]) in given
        for index in range(self.acknowledged, len(self.blocks)):
            assert process.ask("insert", encode(self.blocks[index])).accepted == (index >= kept)
        self.acknowledged = len(self.blocks)


def _windows(blocks: list[TransitionBlock]) -> tuple[np.ndarray, np.ndarray]:
    """Windows [N, 4, 32, 32] and priorities [N] of the newest blocks with at least CAPACITY transitions."""
    images, priorities, count = [], [], 0
    for block in reversed(blocks):
        if count >= CAPACITY:
            break
        count += block.num_transitions
        ends = np.stack(
            [block.obs_frame - 1, block.obs_frame, block.next_frame - 1, block.next_frame], axis=1
        )
        images.append(block.frames["image"][np.maximum(ends, block.first_frame[:, None])])
        priorities.append(block.priority)
    if not images:
        return np.zeros((0, 4, 32, 32), np.uint8), np.zeros(0, np.float32)
    return np.concatenate(images[::-1]), np.concatenate(priorities[::-1])


@pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_killed_at_any_moment(
    tmp_path: Path, random_block: Callable[..., TransitionBlock], rounds: int
) -> None:
    load = _Load(tmp_path, random_block, seed=rounds)
    for incarnation in range(rounds):
        process = _Process(tmp_path / "journal", incarnation)
        load.check(process)
        load.run(process, replies=int(load.rng.integers(0, 60)))
    process = _Process(tmp_path / "journal", rounds)
    load.check(process)
    process.kill()
    assert load.transitions > CAPACITY
    size = sum(path.stat().st_size for path in segment_paths(tmp_path / "journal"))
    # Transitions held, those of a segment that is partly old, and priorities of checkpoints.
    assert size < 3 * CAPACITY * 1_100 + (4 << 20)
