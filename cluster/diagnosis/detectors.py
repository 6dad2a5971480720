"""Detectors of failing learning: each says of recent snapshots how far a threshold is passed, and why.

Owns what is measured, thresholds and words (docs/diagnosis.md derives them); pure, imports no engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from cluster.diagnosis.significance import CRITICAL_Z, Sample, least_difference, least_mean, trend
from cluster.metrics.findings import FindingName
from cluster.metrics.snapshot import Snapshot
from cluster.settings.resolved import ResolvedConfig
from learner.config import LearnerConfig
from replay_service.histogram import Histogram

Window = Sequence[Snapshot]
"""Recent snapshots of one run, oldest first; never empty."""

TENTH = 0.1
"""Of the scale of what is measured, an order of magnitude below it: the least error that is worth a word."""

Q_SLACK = 2.0
"""|Q| over its bound where errors of fit are as large as the largest reward."""

FIRST_VALUES = 1.0
"""Values of first weights are up to about this: where rewards are tiny, no sign of divergence."""

FEWEST_FOR_TREND = 8
"""Values of which a trend can be significant at all."""

LOST_SHARE = 0.5
"""Of what was learned must be gone: less remains than was lost."""

ONE_ACTION_ENTROPY = 0.05
"""Entropy over its maximum where about one action in a hundred is another: 0.08 of 2 actions, 0.05 of 4."""

ALIKE_VARIATION = 0.01
"""Standard deviation over mean of priorities below which drawing by them is drawing uniformly."""

_DEFAULTS = LearnerConfig()


@dataclass(frozen=True)
class Reading:
    """One look. strength: what was measured over its threshold, so that 1 and above is a finding.

    evidence says so in figures, cause and cure in words; all are only of interest from about ½ on.
    """

    strength: float
    evidence: str
    cause: str
    cure: str


@dataclass(frozen=True)
class Detector:
    """read: None where it cannot be judged. looks_at: what must have changed for another look to be news."""

    name: FindingName
    read: Callable[[Window, ResolvedConfig], Reading | None]
    looks_at: Callable[[Snapshot], Hashable]


def diverging_q(window: Window, config: ResolvedConfig) -> Reading | None:
    """|Q| beyond what rewards can sum up to, or beyond it and growing with the loss; updates not finite.

    "Soft divergence" of van Hasselt et al. 2018 (arXiv:1812.02648), 3.1.
    """
    now, before = window[-1], window[0]
    skipped = now.skipped_updates_total - before.skipped_updates_total
    if skipped > 0:
        return Reading(
            2.0,
            f"{skipped:,} updates were left out, because loss or gradient was not finite "
            "(logs/*.skipped.jsonl has them)",
            *_diverging_cause_and_cure(config),
        )
    bound = _value_bound(now)
    values = [value for each in window if (value := _largest_q(each)) is not None]
    if bound is None or len(values) < FEWEST_FOR_TREND:
        return None
    grows = trend(values)
    # What falls does not diverge: it comes from first weights, or from a divergence that is over.
    strength = 0.0 if grows < -CRITICAL_Z else values[-1] / max(Q_SLACK * bound, FIRST_VALUES)
    losses = [each.loss for each in window if each.loss is not None]
    with_loss = grows > CRITICAL_Z and trend(losses) > CRITICAL_Z
    if with_loss and values[-1] > max(bound, FIRST_VALUES):
        strength = max(strength, 1.0)
    seconds = now.run_seconds - before.run_seconds
    growth = f"; within {seconds:.0f} s it went from {values[0]:.4g}"
    spike = f", the loss from {losses[0]:.3g} to {losses[-1]:.3g}" if losses else ""
    if now.loss_max is not None:
        spike += f" (one minibatch: {now.loss_max:.3g})"
    return Reading(
        strength,
        f"|Q| is up to {values[-1]:.4g}, {values[-1] / bound:.3g} times what rewards of at most "
        f"{now.reward_abs_max:.3g} can sum up to ({bound:.4g}){growth}{spike}",
        *_diverging_cause_and_cure(config),
    )


def _diverging_cause_and_cure(config: ResolvedConfig) -> tuple[str, str]:
    learner = config.learner
    if learner.target_polyak is None and _targets_move(learner):
        return (
            "the network that is fitted makes its own targets, so that errors feed themselves",
            f"learner.target_update_updates={_DEFAULTS.target_update_updates} "
            f"(now {learner.target_update_updates})" + _and_clip(learner),
        )
    if _targets_move(learner):
        return (
            "the target network follows so fast that errors feed themselves",
            f"learner.target_polyak=0.005 (now {learner.target_polyak:g})" + _and_clip(learner),
        )
    return (
        "steps are so long that an update makes errors greater",
        _slower(learner) + _and_clip(learner),
    )


def _targets_move(learner: LearnerConfig) -> bool:
    """Whether targets follow the network within fewer than ten updates."""
    if learner.target_polyak is not None:
        return learner.target_polyak > TENTH
    return learner.target_update_updates < 1.0 / TENTH


def _slower(learner: LearnerConfig) -> str:
    return f"learner.learning_rate={learner.learning_rate / 10:g} (now {learner.learning_rate:g})"


def _and_clip(learner: LearnerConfig) -> str:
    return ", learner.max_grad_norm=10 (now null)" if learner.max_grad_norm is None else ""


def catastrophic_forgetting(window: Window, config: ResolvedConfig) -> Reading | None:
    """The newest evaluation against the best: significantly below it, and half of what was learned is gone.

    What was learned is the best return less that of the first 100 training episodes.
    """
    now = window[-1]
    evaluated, best = _evaluated_returns(now), _best_returns(now, config)
    if evaluated is None or best is None or now.first_return_mean is None:
        return None
    learned = best.mean - now.first_return_mean
    # The first episodes' mean is taken as known: where nothing was learned, nothing can be forgotten.
    if learned <= 0.0 or least_mean(best) <= now.first_return_mean:
        return Reading(0.0, "", "", "")
    lost = (best.mean - evaluated.mean) / learned
    significant = least_difference(best, evaluated) > 0.0
    capacity = config.replay.capacity
    if now.env_steps_total > 2 * capacity:
        cause = (
            f"replay holds the newest {capacity:,} of {now.env_steps_total:,} transitions: nothing reminds "
            "the network of what a good policy no longer meets"
        )
        cure = f"replay.capacity={10 * capacity}"
    else:
        cause = "updates late in learning are as long as early ones and undo what was learned"
        cure = (
            f"learner.learning_rate_end={config.learner.learning_rate / 10:g} with "
            "learner.learning_rate_decay_updates"
        )
    return Reading(
        lost / LOST_SHARE if significant and _is_mature(now, config) else 0.0,
        f"version {now.evaluation_version:,} returns {evaluated.mean:.4g} (±{evaluated.error:.2g}), "
        f"version {now.best_version:,} returned {best.mean:.4g} (±{best.error:.2g}): {min(lost, 1.0):.0%} of "
        f"what was learned since {now.first_return_mean:.4g} is gone",
        cause,
        f"{cure}; weights/best still holds version {now.best_version:,}",
    )


def overestimation(window: Window, config: ResolvedConfig) -> Reading | None:
    """What Q promises where greedy episodes begin, against the discounted return that followed.

    The least that it is too high by (but for chance), less all that truncated episodes may have missed.
    """
    now = window[-1]
    scale, bound = _value_scale(window), _value_bound(now)
    promised, earned = now.evaluation_start_value_mean, now.evaluation_discounted_return_mean
    count, std = now.evaluation_episodes, now.evaluation_start_value_error_std
    if scale is None or promised is None or earned is None or std is None or count is None or count < 2:
        return None
    cut = now.evaluation_truncation_discount_mean or 0.0
    if cut > 0.0 and bound is None:
        return None
    missed = cut * bound if bound is not None else 0.0
    surplus = Sample(promised - earned - missed, std, count)
    learner = config.learner
    if _targets_move(learner):
        cause, cure = _diverging_cause_and_cure(config)
    elif not learner.double:
        cause, cure = "the maximum over noisy values takes the lucky ones", "learner.double=true"
    elif config.actors.n_step == 1:
        cause, cure = "values rest on other values for many steps", "actors.n_step=3"
    else:
        cause = "values rest on targets that follow them fast, or ends of episodes are reported as truncated"
        cure = (
            f"learner.target_update_updates={2 * learner.target_update_updates}; and see that the "
            "environment terminates"
        )
    return Reading(
        least_mean(surplus) / (TENTH * scale) if _is_mature(now, config) else 0.0,
        f"Q promises {promised:.4g} where episodes begin, greedy ones earned {earned:.4g} (discounted, "
        f"{count} of them): {promised - earned:.3g} too much, ±{surplus.error:.2g}"
        + (f", of which {missed:.2g} may lie behind time limits" if missed else ""),
        cause,
        cure,
    )


def stale_data(window: Window, config: ResolvedConfig) -> Reading | None:
    """How many updates old the policy was whose rows came in, against the updates that replay is deep.

    What is sampled is as old as replay makes it, plus that. Judged once replay is full.
    """
    now, before = window[-1], window[0]
    capacity = sum((now.shard_capacity_transitions or {}).values())
    updates = now.updates_total - before.updates_total
    inserted = now.inserted_transitions_total - before.inserted_transitions_total
    lag = _since(now.sample_policy_lag_updates, before.sample_policy_lag_updates)
    age = _since(now.sample_age_transitions, before.sample_age_transitions)
    full = capacity > 0 and now.replay_transitions > (1.0 - TENTH) * capacity
    if not full or updates <= 0 or inserted <= 0 or lag is None or age is None:
        return None
    updates_per_transition = updates / inserted
    depth = capacity * updates_per_transition
    late = lag - age * updates_per_transition
    if config.learner.updates_per_chunk > depth:
        cause = f"the learner does {config.learner.updates_per_chunk:,} updates in a row on the same rows"
        cure = f"learner.updates_per_chunk={max(1, int(depth / 2))}"
    else:
        cause = "actors act on with old weights for long: their chunks are long, or they lack CPU time"
        steps = config.actors.steps_per_chunk
        cure = f"actors.steps_per_chunk={max(1, steps // 2)} (now {steps}), or fewer actors than cores"
    return Reading(
        late / depth,
        f"sampled rows were acted {lag:.4g} updates ago, of which replay explains {lag - late:.4g}: they are "
        f"{late:.4g} updates old when they come in, and replay is only {depth:.4g} deep",
        cause,
        f"{cure}; or a larger replay.capacity (now {config.replay.capacity:,})",
    )


def collapsed_action_choice(window: Window, config: ResolvedConfig) -> Reading | None:
    """One action nearly always, while returns are worse than those of the first training episodes.

    A good policy may well need one action only, so entropy alone says nothing.
    """
    now = window[-1]
    entropy, evaluated = now.evaluation_action_entropy_ratio, _evaluated_returns(now)
    if entropy is None or evaluated is None or now.first_return_mean is None:
        return None
    poor = -least_mean(Sample(-evaluated.mean, evaluated.std, evaluated.count)) < now.first_return_mean
    learner = config.learner
    return Reading(
        ONE_ACTION_ENTROPY / max(entropy, 1e-9) if poor and _is_mature(now, config) else 0.0,
        f"greedy actions have {entropy:.1%} of the entropy that they could have, and return "
        f"{evaluated.mean:.4g} (±{evaluated.error:.2g}), less than the {now.first_return_mean:.4g} of the "
        "first episodes",
        "one action's value is the highest everywhere: all observations look alike to the network, as after "
        "steps so long that its units died",
        _slower(learner)
        + _and_clip(learner)
        + ("" if learner.normalize_observations else ", or learner.normalize_observations=true"),
    )


def reward_scale(window: Window, config: ResolvedConfig) -> Reading | None:
    """Rewards so large that values cannot follow, so small that they drown, or outside what atoms span."""
    now = window[-1]
    bound, learner = _value_bound(now), config.learner
    promised, earned = now.evaluation_start_value_mean, now.evaluation_discounted_return_mean
    if bound is None or now.learning_rate is None or now.reward_abs_max is None:
        return None
    width = 1 if learner.network == "table" else learner.hidden_sizes[-1]
    step = now.learning_rate * math.sqrt(width)
    if step > bound / 2:
        return Reading(
            step / bound,
            f"rewards of at most {now.reward_abs_max:.2g} sum up to at most {bound:.2g}, and one update "
            f"moves Q by about {step:.2g} (the learning rate times the root of {width} weights)",
            "rewards drown in the jitter of updates",
            f"multiply the rewards by about {1.0 / now.reward_abs_max:.0e} in the environment",
        )
    if promised is None or earned is None:
        return None
    low, high = learner.value_range
    if learner.head == "c51" and not low <= earned <= high:
        return Reading(
            1.0 + max(low - earned, earned - high) / (high - low),
            f"greedy episodes earn {earned:.4g} (discounted), outside the atoms' {low:g} to {high:g}",
            "a distribution cannot put mass where it has no atoms",
            f"learner.value_range=[{min(low, 1.5 * earned):.3g}, {max(high, 1.5 * earned):.3g}]",
        )
    count, std = now.evaluation_episodes, now.evaluation_start_value_error_std
    if count is None or count < 2 or std is None:
        return None
    # Values that had as many copies of the target as they need, and are still farther off than by chance.
    behind = Sample(abs(earned - promised), std, count)
    followed = _is_mature(now, config) and least_mean(behind) > 0.0
    return Reading(
        TENTH * abs(earned) / max(abs(promised), 1e-9) if followed else 0.0,
        f"greedy episodes earn {earned:.4g} (discounted), of which Q foretells {promised:.3g} after "
        f"{now.evaluation_version:,} updates; rewards are up to {now.reward_abs_max:.3g}" + _clipped_to(now),
        "values begin near 0 and an update moves them by about the learning rate: they cannot follow rewards "
        "of this size",
        f"divide the rewards by about {max(1.0, now.reward_abs_max):.0e} in the environment, or "
        "actors.reward_clip=1",
    )


def _clipped_to(now: Snapshot) -> str:
    before, after = now.grad_norm_mean, now.grad_norm_clipped_mean
    if not before or after is None or after >= before:
        return ""
    return f", gradients are cut to {after / before:.2g} of their length"


def degenerate_priorities(window: Window, config: ResolvedConfig) -> Reading | None:
    """Kish's effective number of rows: less than a minibatch, or all rows alike."""
    now = window[-1]
    effective_ratio = now.shard_priority_effective_ratio
    masses, counts = now.shard_mass or {}, now.shard_transitions or {}
    if config.replay.sampling != "prioritized" or not effective_ratio:
        return None
    shards = [shard for shard in effective_ratio if counts.get(shard) and masses.get(shard)]
    # Rows that were never drawn have their first priorities: all alike before there were weights.
    if not shards or now.sampled_transitions_total < now.replay_transitions or not now.reward_abs_max:
        return None
    mass = math.fsum(masses[shard] for shard in shards)
    squares = math.fsum(masses[shard] ** 2 / (effective_ratio[shard] * counts[shard]) for shard in shards)
    rows, effective = sum(counts[shard] for shard in shards), mass**2 / squares
    batch, exponent = config.learner.batch_size, config.replay.priority_exponent
    variation = math.sqrt(max(0.0, rows / effective - 1.0))
    if variation < 2 * ALIKE_VARIATION:
        return Reading(
            ALIKE_VARIATION / max(variation, 1e-9),
            f"priorities of {rows:,.0f} rows differ by {variation:.1g} of their mean",
            "errors drown in replay.priority_epsilon, or the exponent flattens them",
            f"replay.priority_epsilon={config.replay.priority_epsilon / 100:.0e} (now "
            f"{config.replay.priority_epsilon:g}), replay.priority_exponent=0.6 (now {exponent:g}), or "
            "replay.sampling=uniform, which costs less",
        )
    return Reading(
        batch / effective,
        f"as few as {effective:.3g} of {rows:,.0f} rows have the mass of priorities, a minibatch has {batch}",
        "errors of few rows exceed all others: rare large rewards, or values that diverge",
        f"replay.priority_exponent={exponent / 2:.2g} (now {exponent:g}), or actors.reward_clip=1",
    )


def _evaluation(snapshot: Snapshot) -> Hashable:
    # One version is one look, however often it is played.
    return snapshot.evaluation_version


def _updates(snapshot: Snapshot) -> Hashable:
    return snapshot.updates_total


def _priorities(snapshot: Snapshot) -> Hashable:
    return tuple((snapshot.shard_priority_effective_ratio or {}).items())


DETECTORS = (
    Detector("diverging_q", diverging_q, _updates),
    Detector("catastrophic_forgetting", catastrophic_forgetting, _evaluation),
    Detector("overestimation", overestimation, _evaluation),
    Detector("stale_data", stale_data, _updates),
    Detector("collapsed_action_choice", collapsed_action_choice, _evaluation),
    Detector("reward_scale", reward_scale, _evaluation),
    Detector("degenerate_priorities", degenerate_priorities, _priorities),
)


def _largest_q(snapshot: Snapshot) -> float | None:
    if snapshot.q_min is None or snapshot.q_max is None:
        return None
    return max(abs(snapshot.q_min), abs(snapshot.q_max))


def _value_bound(snapshot: Snapshot) -> float | None:
    """r_max / (1 - gamma): no discounted return is greater. None without rewards or without discount."""
    if not snapshot.reward_abs_max or snapshot.discount is None or snapshot.discount >= 1.0:
        return None
    return snapshot.reward_abs_max / (1.0 - snapshot.discount)


def _value_scale(window: Window) -> float | None:
    """What values are like in size: the mean |reward| of a step over the horizon 1 / (1 - gamma)."""
    discount = window[-1].discount
    rewards = [each.reward_abs_mean for each in window if each.reward_abs_mean]
    if discount is None or not rewards:
        return None
    horizon = 1.0 / (1.0 - discount) if discount < 1.0 else window[-1].train_length_mean
    return rewards[-1] * horizon if horizon else None


def _is_mature(snapshot: Snapshot, config: ResolvedConfig) -> bool:
    """Whether less than a tenth is left of the error that the evaluated version's values began with.

    gamma^(n k) of it is, once the target network was copied k times and fitted each time; nothing is, once
    rewards have come back from the end of an episode to its beginning.
    """
    learner = config.learner
    version = snapshot.evaluation_version or 0
    copies = (
        version / learner.target_update_updates
        if learner.target_polyak is None
        else version * learner.target_polyak
    )
    steps = config.actors.n_step * copies
    return config.actors.discount**steps < TENTH or steps > (snapshot.train_length_mean or math.inf)


def _evaluated_returns(snapshot: Snapshot) -> Sample | None:
    mean, std, count = (
        snapshot.evaluation_return_mean,
        snapshot.evaluation_return_std,
        snapshot.evaluation_episodes,
    )
    if mean is None or std is None or count is None or count < 2:
        return None
    return Sample(mean, std, count)


def _best_returns(snapshot: Snapshot, config: ResolvedConfig) -> Sample | None:
    mean, std = snapshot.best_return_mean, snapshot.best_return_std
    if mean is None or std is None or config.evaluation.episodes < 2:
        return None
    return Sample(mean, std, config.evaluation.episodes)


def _since(now: Histogram | None, before: Histogram | None) -> float | None:
    """The mean of the values counted in between; a histogram with fewer began anew with a life of the run."""
    if now is None or before is None:
        return None
    counted = now - before if now.count >= before.count else now
    return counted.sum / counted.count if counted.count > 0 else None
