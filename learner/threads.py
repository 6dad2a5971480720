"""The number of threads of an update on a CPU, chosen by trying more and fewer in turns.

Owns the choice, which is a function of the times it is given; must not import torch.

Two threads halve the update of a large network and lengthen that of a small one, and beside busy processes
they may take many times as long, because the threads of OpenMP wait for each other at every operation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

_SIDE_SECONDS = 0.4
_PAIRS = 3
_MOST_RATIO = 0.93
"""More threads stay if an update then takes at most this share of its time: gains below it are noise."""
_SPARE_CORES = 0.5
"""Threads fit if other processes leave as many cores, less this share of one."""
_FIRST_GAP_SECONDS, _MOST_GAP_SECONDS = 3.0, 300.0
_GROWTH_AFTER_CHANGE, _GROWTH = 2.0, 4.0
_SLOWDOWN = 1.5
_SLOW_IN_TURN = 2
"""A thread goes after so many slow stretches in turn: in the first, others' work may not show yet."""


@dataclass
class _Timed:
    """Updates and the seconds that they took."""

    updates: int = 0
    seconds: float = 0.0

    def add(self, updates: int, seconds: float) -> None:
        self.updates += updates
        self.seconds += seconds

    @property
    def is_enough(self) -> bool:
        return self.seconds >= _SIDE_SECONDS

    @property
    def each_seconds(self) -> float:
        return self.seconds / self.updates


@dataclass
class _Trial:
    """Two numbers of threads in turns."""

    fewer: int
    more: int
    sides: list[_Timed] = field(default_factory=lambda: [_Timed()])

    def add(self, updates: int, seconds: float) -> None:
        if self.sides[-1].is_enough:
            self.sides.append(_Timed())
        self.sides[-1].add(updates, seconds)

    @property
    def is_over(self) -> bool:
        """Whether all pairs are there, or the last of some shows that more threads take longer."""
        is_pair = len(self.sides) % 2 == 0 and self.sides[-1].is_enough
        return is_pair and (len(self.sides) == 2 * _PAIRS or self._ratios()[-1] > 1.0)

    @property
    def threads(self) -> int:
        """For the next chunk."""
        turn = len(self.sides) - 1 + self.sides[-1].is_enough
        return self.more if turn % 2 else self.fewer

    @property
    def ratio(self) -> float:
        """An update's time with more threads, divided by that with fewer: the median, or what ended it."""
        ratios = self._ratios()
        return median(ratios) if len(ratios) == _PAIRS else ratios[-1]

    @property
    def fewer_seconds(self) -> float:
        """Seconds of an update with fewer threads."""
        return median(side.each_seconds for side in self.sides[::2])

    def _ratios(self) -> list[float]:
        pairs = zip(self.sides[::2], self.sides[1::2], strict=True)
        return [more.each_seconds / fewer.each_seconds for fewer, more in pairs]


class ThreadChoice:
    """Begins with one thread, and tries twice or half as many, less and less often.

    While others use the cores of some threads, for instance actors that act in bursts, it does without these.

    Attributes:
        threads: for the next chunk of updates.
        chosen: the outcome of the trials; `threads` differs from it during one, and while others use cores.
        reason: of the last choice, in words.
    """

    def __init__(self, most: int) -> None:
        """most: the cores that this process may use."""
        self.threads = self.chosen = 1
        self.reason = ""
        self._most = most
        self._trial: _Trial | None = None
        self._gap_seconds = _FIRST_GAP_SECONDS
        self._since_trial_seconds = 0.0
        self._tries_more = True
        self._recent = _Timed()
        self._slow_seconds = math.inf
        self._slow_in_turn = 0

    def after(self, updates: int, seconds: float, free_cores: float) -> bool:
        """Takes in a chunk of updates with `threads`; returns whether `chosen` has changed.

        Args:
            updates: how many, at least 1.
            seconds: that the learner worked on them.
            free_cores: cores that no other process used meanwhile, on average.
        """
        before = self.chosen
        if self._trial is not None and not _fits(self._trial.more, free_cores):
            self._trial = None  # without an outcome: the two numbers had unequal terms
            self._wait(_GROWTH_AFTER_CHANGE)
        if self._trial is not None:
            self._trial.add(updates, seconds)
            self.threads = self._trial.threads
            if self._trial.is_over:
                self._end(self._trial)
            return self.chosen != before
        self._since_trial_seconds += seconds
        if self.threads == self.chosen:
            self._recent.add(updates, seconds)
        self.threads = self.chosen
        while not _fits(self.threads, free_cores):
            self.threads //= 2
        if self.threads < self.chosen:
            self._slow_in_turn, self._recent = 0, _Timed()
            return False
        if self._recent.is_enough:
            is_slow = self._recent.each_seconds > self._slow_seconds
            self._slow_in_turn = self._slow_in_turn + 1 if is_slow else 0
            self._recent = _Timed()
            if self._slow_in_turn == _SLOW_IN_TURN:
                self._choose(self.chosen // 2, "updates have become slower than with half as many")
        if self._since_trial_seconds >= self._gap_seconds:
            self._begin(free_cores)
        return self.chosen != before

    def _begin(self, free_cores: float) -> None:
        """Begins a trial: with more threads where cores idle, or with fewer; in turns where both can be."""
        more = min(2 * self.chosen, self._most)
        may_try_more = more > self.chosen and _fits(more, free_cores)
        may_try_fewer = self.chosen > 1
        if may_try_more and (self._tries_more or not may_try_fewer):
            self._trial = _Trial(self.chosen, more)
        elif may_try_fewer:
            self._trial = _Trial(self.chosen // 2, self.chosen)
        else:
            return
        self.threads = self._trial.threads

    def _end(self, trial: _Trial) -> None:
        """Chooses by a trial."""
        pays = trial.ratio <= _MOST_RATIO
        reason = f"{trial.more} take {trial.ratio:.2f} of the time of {trial.fewer}"
        self._choose(trial.more if pays else trial.fewer, reason)
        self._tries_more = pays
        if pays:
            self._slow_seconds = _SLOWDOWN * trial.fewer_seconds

    def _choose(self, threads: int, reason: str) -> None:
        """Ends a trial. The next one comes later than this one did."""
        growth = _GROWTH if threads == self.chosen else _GROWTH_AFTER_CHANGE
        self.chosen, self.reason, self._slow_seconds = threads, reason, math.inf
        self._trial, self.threads, self._slow_in_turn = None, threads, 0
        self._wait(growth)

    def _wait(self, growth: float) -> None:
        """Lets the next trial come after `growth` times the gap before this one."""
        self._since_trial_seconds = 0.0
        self._gap_seconds = min(growth * self._gap_seconds, _MOST_GAP_SECONDS)


def _fits(threads: int, free_cores: float) -> bool:
    return threads == 1 or free_cores >= threads - _SPARE_CORES
