"""A simulated CUDA device: streams run what was queued at any time that events allow, in random order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch


class Event:
    """Passes when its newest recording does; one that was never recorded has passed."""

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self.recorded = 0
        self.passed = 0

    def record(self, stream: Stream) -> None:
        self.recorded += 1
        number = self.recorded

        def passes() -> None:
            self.passed = max(self.passed, number)

        stream.add(passes)

    def synchronize(self) -> None:
        """Lets the device work until the event has passed."""
        number = self.recorded
        while self.passed < number:
            self._device.step()


class Stream:
    """Works off what was queued, in order, each piece once its condition holds."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()

    def add(self, piece: Callable[[], None]) -> None:
        """Queues a piece of work."""
        self.queue.append((lambda: True, piece))

    def wait_event(self, event: Event) -> None:
        """What is queued from now on waits for the event's newest recording so far."""
        number = event.recorded
        self.queue.append((lambda: event.passed >= number, lambda: None))


class Buffer:
    """Memory of the device. Copies are queued on the current stream, and read the host when they run."""

    def __init__(self, device: SimulatedDevice, like: torch.Tensor) -> None:
        self._device = device
        self.values = np.zeros_like(like.numpy())

    def copy_(self, host: torch.Tensor, *, non_blocking: bool) -> None:
        assert non_blocking
        half = len(self.values) // 2
        for part in (slice(None, half), slice(half, None)):  # a copy takes time: others may run between

            def copies(part: slice = part) -> None:
                self.values[part] = host.numpy()[part]

            self._device.current.add(copies)


class SimulatedDevice:
    """Stands for torch.cuda, with a stream for computing and others; which are faster depends on the seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._computing_share = self._rng.random()
        self.computing = self.current = Stream()
        self._streams = [self.computing]

    def step(self) -> bool:
        """Runs one piece of a random stream; returns False where nothing can run."""
        ready = [stream for stream in self._streams if stream.queue and stream.queue[0][0]()]
        if not ready:
            assert not any(stream.queue for stream in self._streams), "the streams wait for each other"
            return False
        computes = ready[0] is self.computing and self._rng.random() < self._computing_share
        others = ready[1:] if ready[0] is self.computing and len(ready) > 1 else ready
        chosen = self.computing if computes else others[self._rng.integers(len(others))]
        chosen.queue.popleft()[1]()
        return True

    def work(self) -> None:
        """Runs a random number of pieces: as much as the device does until the host goes on."""
        for _ in range(int(self._rng.integers(12))):
            self.step()

    def finish(self) -> None:
        """Runs everything."""
        while self.step():
            pass

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Takes the place of torch's own functions."""

        def new_stream(_: object) -> Stream:
            self._streams.append(Stream())
            return self._streams[-1]

        empty, empty_like = torch.empty, torch.empty_like

        def on_host(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            return empty(*args, **options)

        def anywhere(tensor: torch.Tensor, *, device: torch.device) -> Any:
            return Buffer(self, tensor) if device.type == "cuda" else empty_like(tensor, device=device)

        monkeypatch.setattr("torch.cuda.Stream", new_stream)
        monkeypatch.setattr("torch.cuda.Event", lambda: Event(self))
        monkeypatch.setattr("torch.cuda.stream", self.stream)
        monkeypatch.setattr("torch.cuda.current_stream", lambda _: self.current)
        monkeypatch.setattr("torch.empty", on_host)
        monkeypatch.setattr("torch.empty_like", anywhere)
