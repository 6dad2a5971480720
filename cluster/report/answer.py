"""What a report says first: the results in numbers and sentences, and whether groups of runs differ.

Owns these sentences and the comparison of groups; draws nothing. Must not import torch or ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from cluster.control.significance import Sample, difference_lower_bound
from cluster.report.charts import interval
from cluster.report.runs import Group, Run, is_number, said
from cluster.wording import duration, number, quantity, short

_ALPHA = 0.025
"""On either side of an interval of 95 %."""


@dataclass(frozen=True)
class Headline:
    """A number with its name, as "best return" and "499.2"."""

    name: str
    value: str


@dataclass(frozen=True)
class Answer:
    """What is known of some runs. findings: what diagnosis still found at their ends, and what it advises."""

    headlines: tuple[Headline, ...]
    sentences: tuple[str, ...]
    findings: tuple[str, ...]


def answer(groups: Sequence[Group], baseline: Group | None = None) -> Answer:
    """The answer of the runs. baseline: the group with which each other is compared; by default the first."""
    runs = [run for group in groups for run in group.runs]
    sentences = [_result(group, alone=len(groups) == 1) for group in groups]
    reference = baseline or groups[0]
    sentences += [comparison(group, reference) for group in groups if group is not reference]
    if len(runs) == 1:
        sentences.append(f"It ended: {runs[0].end}.")
    return Answer(tuple(_headlines(runs)), tuple(sentences), tuple(_findings(groups)))


def best_returns(group: Group) -> list[float]:
    """The best version's return of each run that has one."""
    return [value for run in group.runs if is_number(value := run.last.get("best_return_mean"))]


def comparison(group: Group, reference: Group) -> str:
    """Whether the best returns of a group differ from those of another, by Welch's t over seeds."""
    ours, theirs = best_returns(group), best_returns(reference)
    if not ours or not theirs:
        return f"{group.label} against {reference.label}: not both have a best version."
    difference = fmean(ours) - fmean(theirs)
    words = f"{number(abs(difference), 2)} {'higher' if difference >= 0 else 'lower'}"
    begin = f"{group.label} against {reference.label}: the mean best return is {words}"
    if min(len(ours), len(theirs)) < 2:
        return f"{begin}; with a single seed on a side nobody can say whether that is chance."
    a, b = (Sample(fmean(each), pstdev(each), len(each)) for each in (ours, theirs))
    low, high = difference_lower_bound(a, b, _ALPHA), -difference_lower_bound(b, a, _ALPHA)
    verdict = "a significant difference" if low > 0 or high < 0 else "no significant difference"
    return (
        f"{begin}: {verdict} (95 % interval of the difference {number(low, 2)} to {number(high, 2)}, "
        f"Welch's t, {len(ours)} and {quantity(len(theirs), 'seed')})."
    )


def _result(group: Group, *, alone: bool) -> str:
    """What a group has reached."""
    found, whose = interval(best_returns(group)), "" if alone else f"{group.label}: "
    if found is None:
        return f"{whose}no version has been confirmed as the best yet."
    if len(group.runs) == 1:
        last = group.runs[0].last
        return (
            f"{whose}best greedy return {number(found.iqm, 2)} (version {last.get('best_version', '?')}, "
            f"confirmed on other seeds), in {short(last.get('env_steps_total'))} env steps and "
            f"{duration(last.get('run_seconds', 0.0))}."
        )
    spread = f", 95 % interval {number(found.low, 2)} to {number(found.high, 2)}" if found.seeds > 1 else ""
    missing = len(group.runs) - found.seeds
    without = f"; {quantity(missing, 'seed')} without a best version" if missing else ""
    return (
        f"{whose}best greedy return {number(found.iqm, 2)} (IQM over {quantity(found.seeds, 'seed')}{spread}"
        f"{without})."
    )


def _headlines(runs: Sequence[Run]) -> Iterator[Headline]:
    """The headline numbers of one run, or the sums of several."""
    lasts = [run.last for run in runs if run.last]
    best = [line["best_return_mean"] for line in lasts if is_number(line.get("best_return_mean"))]
    if best:
        yield Headline("best greedy return", number(max(best), 2))
    if len(runs) > 1:
        yield Headline("runs", f"{len(runs)}")
    for name, metric in (("env steps", "env_steps_total"), ("updates", "updates_total")):
        yield Headline(name, short(sum(line.get(metric, 0) for line in lasts)))
    yield Headline("time", duration(sum(line.get("run_seconds", 0.0) for line in lasts)))


def _findings(groups: Sequence[Group]) -> Iterator[str]:
    """The verdict and the findings at the end of a single run; of several, how many of a group have each."""
    runs = [run for group in groups for run in group.runs]
    if len(runs) == 1:
        yield from said(runs[0].last).values()
        return
    for group in groups:
        found = Counter(name for run in group.runs for kind, name in said(run.last) if kind == "warning")
        for name, times in found.items():
            title = name.replace("_", " ").replace(" q", " Q")
            yield f"{group.label}: {title} at the end of {times} of {quantity(len(group.runs), 'run')}."
