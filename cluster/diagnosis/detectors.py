"""Detectors of failing learning: each measures in recent snapshots how far a threshold is exceeded, and why.

Owns measurements, thresholds and texts (docs/diagnosis.md derives them); pure, imports no engine.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from cluster.control.significance import CRITICAL_Z, Sample, difference_lower_bound, mean_lower_bound, trend
from cluster.metrics.snapshot import FindingName, Snapshot
from cluster.settings.resolved import ResolvedConfig
from learner.config import TARGET_UPDATE_UPDATES, LearnerConfig
from replay_service.histogram import Histogram

Window = Sequence[Snapshot]
"""Recent snapshots of one run, oldest first; never empty."""

TENTH = 0.1
"""Errors below this share of the typical size of values do not matter: one order of magnitude."""

Q_SLACK = 2.0
"""The ratio of |Q| to its bound if fits err by as much as the largest reward in each step."""

INITIAL_VALUES = 1.0
"""Initial weights alone give values up to about this; with tiny rewards that exceeds any bound harmlessly."""

FEWEST_FOR_TREND = 8
"""The fewest values whose trend can be significant."""

LOST_SHARE = 0.5
"""Share of the gain from learning that must be lost for a finding: from here on, less is left than lost."""

ONE_ACTION_ENTROPY = 0.05
"""Entropy over its maximum if one action is taken 99 % of the time: 0.08 for 2 actions, 0.05 for 4."""

FEWEST_EPISODES = 2.0
"""Episodes of each lane in replay below which the one before the last may already be gone in part."""

PLATEAU_EVALUATIONS = 10
"""Successive evaluations that are no better than the best before them, from which on returns do not rise."""

ALIKE_VARIATION = 0.01
"""Ratio of standard deviation to mean of priorities below which sampling is practically uniform."""


@dataclass(frozen=True)
class Reading:
    """One measurement. strength: the measured value over its threshold, so 1 and above is a finding.

    A finding is shown until strength falls below one half, so the texts must be true from there on.
    """

    strength: float
    evidence: str
    cause: str
    cure: str


@dataclass(frozen=True)
class Detector:
    """looks_at: a value that must change before the next look. read: the look; None on too few data."""

    name: FindingName
    read: Callable[[Window, ResolvedConfig], Reading | None]
    looks_at: Callable[[Snapshot], Hashable]


def diverging_q(window: Window, config: ResolvedConfig) -> Reading | None:
    """|Q| far above any possible return, or above it and growing with the loss; or updates were not finite.

    "Soft divergence" of van Hasselt et al. 2018 (arXiv:1812.02648), 3.1.
    """
    now, before = window[-1], window[0]
    cause, cure = _instability(config)
    skipped = now.skipped_updates_total - before.skipped_updates_total
    if skipped > 0:
        why = "because loss or gradient was not finite (logs/*.skipped.jsonl has them)"
        return Reading(2.0, f"{skipped:,} updates were skipped, {why}", cause, cure)
    bound = _value_bound(now)
    values = [
        max(abs(each.q_min), abs(each.q_max))
        for each in window
        if each.q_min is not None and each.q_max is not None
    ]
    if bound is None or len(values) < FEWEST_FOR_TREND:
        return None
    grows = trend(values)
    # Falling values do not diverge: they come from the first weights, or from a divergence that is over.
    strength = 0.0 if grows < -CRITICAL_Z else values[-1] / max(Q_SLACK * bound, INITIAL_VALUES)
    losses = [each.loss for each in window if each.loss is not None]
    if min(grows, trend(losses)) > CRITICAL_Z and values[-1] > max(bound, INITIAL_VALUES):
        strength = max(strength, 1.0)
    growth = f"; within {now.run_seconds - before.run_seconds:.0f} s it went from {values[0]:.4g}"
    if losses:
        growth += f", the loss from {losses[0]:.3g} to {losses[-1]:.3g}"
    if now.loss_max is not None:
        growth += f" (one minibatch: {now.loss_max:.3g})"
    return Reading(
        strength,
        f"|Q| is up to {values[-1]:.4g}, {values[-1] / bound:.3g} times what rewards of at most "
        f"{now.reward_abs_max:.3g} can sum up to ({bound:.4g}){growth}",
        cause,
        cure,
    )


def catastrophic_forgetting(window: Window, config: ResolvedConfig) -> Reading | None:
    """The newest evaluation is significantly below the best, and half of the gain from learning is lost.

    The gain from learning is the best return minus that of the first training episodes.
    """
    now, capacity = window[-1], config.replay.capacity
    evaluated, first = _evaluated_returns(now), now.first_return_mean
    best = _sample(now.best_return_mean, now.best_return_std, config.evaluation.episodes)
    if evaluated is None or best is None or first is None:
        return None
    # The mean of the first episodes is taken as exact. Where nothing was learned, nothing can be forgotten.
    if mean_lower_bound(best) <= first:
        return Reading(0.0, "", "", "")
    lost = (best.mean - evaluated.mean) / (best.mean - first)
    significant = difference_lower_bound(best, evaluated) > 0.0 and _is_mature(now, config)
    cause, cure = _first_case(
        (
            now.env_steps_total > 2 * capacity,
            f"replay holds the newest {capacity:,} of {now.env_steps_total:,} transitions: nothing reminds "
            "the network of states that a good policy no longer visits",
            f"replay.capacity={10 * capacity}",
        ),
        (
            True,
            "late updates are as large as early ones and undo what was learned",
            f"learner.learning_rate_end={config.learner.first_rate / 10:g} with "
            "learner.learning_rate_decay_updates",
        ),
    )
    return Reading(
        lost / LOST_SHARE if significant else 0.0,
        f"version {now.evaluation_version:,} returns {evaluated.mean:.4g} (±{evaluated.error:.2g}), "
        f"version {now.best_version:,} returned {best.mean:.4g} (±{best.error:.2g}): {min(lost, 1.0):.0%} of "
        f"the gain over the first {first:.4g} is lost",
        cause,
        f"{cure}; weights/best still holds version {now.best_version:,}",
    )


def overestimation(window: Window, config: ResolvedConfig) -> Reading | None:
    """Q-values where greedy episodes begin are above the discounted returns that followed.

    Measures the surplus that chance cannot explain, less all that truncated episodes may have missed.
    """
    now, learner = window[-1], config.learner
    scale, bound = _value_scale(window), _value_bound(now)
    promised, earned = now.evaluation_start_value_mean, now.evaluation_discounted_return_mean
    truncation = now.evaluation_truncation_discount_mean or 0.0
    if scale is None or promised is None or earned is None or (truncation > 0.0 and bound is None):
        return None
    missed = truncation * (bound or 0.0)
    error_std, count = now.evaluation_start_value_error_std, now.evaluation_episodes
    surplus = _sample(promised - earned - missed, error_std, count)
    if surplus is None:
        return None
    cause, cure = _first_case(
        (_targets_move(config), *_instability(config)),
        (
            not learner.double and not learner.munchausen,
            "the maximum over noisy values picks those that are too high",
            "learner.double=true",
        ),
        (config.actors.n_step == 1, "values depend on other values for many steps", "actors.n_step=3"),
        (
            True,
            "targets follow the values too fast, or the environment reports ends of episodes as truncated",
            f"{_copies_every(config, 2 * config.target_update_updates)}; and check that the environment "
            "terminates",
        ),
    )
    return Reading(
        mean_lower_bound(surplus) / (TENTH * scale) if _is_mature(now, config) else 0.0,
        f"Q predicts {promised:.4g} at the start of episodes, {count} greedy ones earned {earned:.4g} "
        f"(discounted): {promised - earned:.3g} too much, ±{surplus.error:.2g}"
        + (f", of which {missed:.2g} may lie beyond time limits" if missed else ""),
        cause,
        cure,
    )


def stale_data(window: Window, config: ResolvedConfig) -> Reading | None:
    """Transitions come in late: the policy that acted is old in comparison with the depth of replay.

    The lag of sampled transitions is their age in replay plus that lateness. Measured once replay is full.
    """
    now, before = window[-1], window[0]
    capacity = sum((now.shard_capacity_transitions or {}).values())
    updates = now.updates_total - before.updates_total
    inserted = now.inserted_transitions_total - before.inserted_transitions_total
    lag = _mean_since(now.sample_policy_lag_updates, before.sample_policy_lag_updates)
    age = _mean_since(now.sample_age_transitions, before.sample_age_transitions)
    if not _is_full(now) or updates <= 0 or inserted <= 0 or lag is None or age is None:
        return None
    updates_per_transition = updates / inserted
    depth = capacity * updates_per_transition
    late = lag - age * updates_per_transition
    steps, updates_per_chunk = config.actors.steps_per_chunk, config.learner.updates_per_chunk
    cause, cure = _first_case(
        (
            updates_per_chunk > depth,
            f"the learner does {updates_per_chunk:,} updates in one chunk, from the same transitions",
            f"learner.updates_per_chunk={max(1, int(depth / 2))}",
        ),
        (
            True,
            "actors act with old weights for long: their chunks are long, or they lack CPU time",
            f"actors.steps_per_chunk={max(1, steps // 2)} (now {steps}), or fewer actors than cores",
        ),
    )
    return Reading(
        late / depth,
        f"sampled transitions are {lag:.4g} updates old, of which replay explains {lag - late:.4g}: they are "
        f"{late:.4g} updates old when they come in, and replay is only {depth:.4g} updates deep",
        cause,
        f"{cure}; or a larger replay.capacity (now {config.replay.capacity:,})",
    )


def few_episodes_per_lane(window: Window, config: ResolvedConfig) -> Reading | None:
    """Ten successive evaluations were no better, and replay holds less than two episodes of each environment.

    Measured once replay is full. Many tasks are learned with less, so nothing is said while returns rise.
    """
    now = window[-1]
    held, episodes, length = now.lane_transitions, now.lane_episodes, now.train_length_mean
    if not _is_full(now) or held is None or not episodes or length is None:
        return None
    if now.best_version is None or now.evaluation_version is None:
        return None
    since_best_updates = now.evaluation_version - now.best_version
    rises = since_best_updates < PLATEAU_EVALUATIONS * config.evaluation.every_updates
    lanes = config.lanes
    fewest = 2.0 * FEWEST_EPISODES * length
    return Reading(
        0.0 if rises else FEWEST_EPISODES / episodes,
        f"no version after {now.best_version:,} is better, and replay holds {held:,.0f} transitions of each "
        f"of {lanes} environments, {episodes:.2g} episodes of {length:,.0f} steps",
        "so many environments fill replay that it loses each episode soon after its end",
        f"replay.capacity={math.ceil(fewest * lanes)} (now {config.replay.capacity}), or fewer actors or "
        f"actors.envs_per_actor, so that there are {max(1, int(held * lanes / fewest))} environments",
    )


def collapsed_action_choice(window: Window, config: ResolvedConfig) -> Reading | None:
    """The greedy policy nearly always chooses one action and returns less than the first training episodes.

    A good policy may need only one action, so entropy alone shows nothing.
    """
    now, learner = window[-1], config.learner
    entropy, first = now.evaluation_action_entropy_ratio, now.first_return_mean
    evaluated = _evaluated_returns(now)
    if entropy is None or evaluated is None or first is None:
        return None
    poor = mean_lower_bound(Sample(first - evaluated.mean, evaluated.std, evaluated.count)) > 0.0
    normalize = "" if learner.normalize_observations else ", or learner.normalize_observations=true"
    return Reading(
        ONE_ACTION_ENTROPY / max(entropy, 1e-9) if poor and _is_mature(now, config) else 0.0,
        f"greedy actions have {entropy:.1%} of the greatest possible entropy, and return "
        f"{evaluated.mean:.4g} (±{evaluated.error:.2g}), less than the {first:.4g} of the first episodes",
        "one action has the highest value everywhere: the network does not tell observations apart, as after "
        "large steps that leave its ReLU units at 0",
        f"{_slower(learner)}{_and_clip(learner)}{normalize}",
    )


def reward_scale(window: Window, config: ResolvedConfig) -> Reading | None:
    """Rewards so large that values cannot follow, so small that they drown, or outside the range of c51."""
    now, learner = window[-1], config.learner
    bound, largest = _value_bound(now), now.reward_abs_max
    promised, earned = now.evaluation_start_value_mean, now.evaluation_discounted_return_mean
    if bound is None or now.learning_rate is None or largest is None:
        return None
    width = 1 if learner.network == "table" else learner.hidden_sizes[-1]
    step = now.learning_rate * math.sqrt(width)
    if step > bound / 2:
        return Reading(
            step / bound,
            f"rewards of at most {largest:.2g} sum up to at most {bound:.2g}, and an update moves Q by about "
            f"{step:.2g} (the learning rate times the root of {width} weights)",
            "rewards drown in the noise of updates",
            f"multiply the rewards by about {1.0 / largest:.0e} in the environment",
        )
    if promised is None or earned is None:
        return None
    low, high = learner.value_range
    if learner.head == "c51" and not low <= earned <= high:
        return Reading(
            1.0 + max(low - earned, earned - high) / (high - low),
            f"greedy episodes earn {earned:.4g} (discounted), outside the atoms' range, {low:g} to {high:g}",
            "a distribution has no probability where it has no atoms",
            f"learner.value_range=[{min(low, 1.5 * earned):.3g}, {max(high, 1.5 * earned):.3g}]",
        )
    behind = _sample(abs(earned - promised), now.evaluation_start_value_error_std, now.evaluation_episodes)
    if behind is None:
        return None
    # Mature values had enough copies of the target; these are still farther off than chance explains.
    late = _is_mature(now, config) and mean_lower_bound(behind) > 0.0
    before, after = now.grad_norm_mean or 0.0, now.grad_norm_clipped_mean or 0.0
    return Reading(
        TENTH * abs(earned) / max(abs(promised), 1e-9) if late else 0.0,
        f"greedy episodes earn {earned:.4g} (discounted), of which Q predicts {promised:.3g} after "
        f"{now.evaluation_version:,} updates; rewards are up to {largest:.3g}"
        + (f", gradients are clipped to {after / before:.2g} of their length" if after < before else ""),
        "values begin near 0 and an update moves them by about the learning rate: they cannot follow rewards "
        "of this size",
        f"divide the rewards by about {max(1.0, largest):.0e} in the environment, or actors.reward_clip=1",
    )


def degenerate_priorities(window: Window, config: ResolvedConfig) -> Reading | None:
    """Kish's effective number of transitions is below a minibatch, or all priorities are alike."""
    now, replay = window[-1], config.replay
    effective_ratio = now.shard_priority_effective_ratio
    masses, counts = now.shard_mass or {}, now.shard_transitions or {}
    if replay.sampling != "prioritized" or not effective_ratio:
        return None
    shards = [shard for shard in effective_ratio if counts.get(shard) and masses.get(shard)]
    # Transitions never sampled have their first priorities: all alike before there were weights.
    if not shards or now.sampled_transitions_total < now.replay_transitions or not now.reward_abs_max:
        return None
    mass = math.fsum(masses[shard] for shard in shards)
    squares = math.fsum(masses[shard] ** 2 / (effective_ratio[shard] * counts[shard]) for shard in shards)
    held, effective = sum(counts[shard] for shard in shards), mass**2 / squares
    variation = math.sqrt(max(0.0, held / effective - 1.0))
    if variation < 2 * ALIKE_VARIATION:
        return Reading(
            ALIKE_VARIATION / max(variation, 1e-9),
            f"priorities of {held:,.0f} transitions differ by {variation:.1g} of their mean",
            "replay.priority_epsilon exceeds all errors, or the exponent flattens them",
            f"replay.priority_epsilon={replay.priority_epsilon / 100:.0e} (now {replay.priority_epsilon:g}), "
            f"replay.priority_exponent=0.6 (now {replay.priority_exponent:g}), or replay.sampling=uniform, "
            "which costs less",
        )
    return Reading(
        config.learner.batch_size / effective,
        f"as few as {effective:.3g} of {held:,.0f} transitions have nearly all the priority mass, and a "
        f"minibatch has {config.learner.batch_size}",
        "the errors of few transitions exceed all others: rare large rewards, or values that diverge",
        f"replay.priority_exponent={replay.priority_exponent / 2:.2g} (now {replay.priority_exponent:g}), or "
        "actors.reward_clip=1",
    )


# One version is one look, however often it is evaluated.
DETECTORS = (
    Detector("diverging_q", diverging_q, lambda now: now.updates_total),
    Detector("catastrophic_forgetting", catastrophic_forgetting, lambda now: now.evaluation_version),
    Detector("overestimation", overestimation, lambda now: now.evaluation_version),
    Detector("stale_data", stale_data, lambda now: now.updates_total),
    Detector("few_episodes_per_lane", few_episodes_per_lane, lambda now: now.evaluation_version),
    Detector("collapsed_action_choice", collapsed_action_choice, lambda now: now.evaluation_version),
    Detector("reward_scale", reward_scale, lambda now: now.evaluation_version),
    Detector(
        "degenerate_priorities",
        degenerate_priorities,
        lambda now: tuple((now.shard_priority_effective_ratio or {}).items()),
    ),
)


def _is_full(snapshot: Snapshot) -> bool:
    """Whether replay is nine tenths full."""
    capacity = sum((snapshot.shard_capacity_transitions or {}).values())
    return capacity > 0 and snapshot.replay_transitions > (1.0 - TENTH) * capacity


def _instability(config: ResolvedConfig) -> tuple[str, str]:
    """Cause and cure of updates that make errors greater."""
    learner = config.learner
    cause, cure = _first_case(
        (
            not _targets_move(config),
            "steps are so large that an update makes errors greater",
            _slower(learner),
        ),
        (
            learner.target_polyak is not None,
            "the target network follows so fast that errors feed on themselves",
            f"learner.target_polyak=0.005 (now {learner.target_polyak})",
        ),
        (
            True,
            "the network that is being fitted computes its own targets, so errors feed on themselves",
            f"{_copies_every(config, TARGET_UPDATE_UPDATES)} (now {_copies_now(learner)})",
        ),
    )
    return cause, cure + _and_clip(learner)


def _first_case(*cases: tuple[bool, str, str]) -> tuple[str, str]:
    """Cause and cure of the first case that holds: (whether it does, cause, cure)."""
    return next((cause, cure) for holds, cause, cure in cases if holds)


def _targets_move(config: ResolvedConfig) -> bool:
    """Whether targets follow the network within fewer than ten updates."""
    if config.learner.target_polyak is not None:
        return config.learner.target_polyak > TENTH
    return config.target_update_updates < 1.0 / TENTH


def _copies_every(config: ResolvedConfig, updates: int) -> str:
    """The setting that copies to the target network every so many updates, in the unit that is in use."""
    if config.learner.target_update_env_steps is None:
        return f"learner.target_update_updates={updates}"
    env_steps = updates * config.learner.batch_size / config.pacing.samples_per_insert
    return f"learner.target_update_env_steps={env_steps:.0f}"


def _copies_now(learner: LearnerConfig) -> int | None:
    return learner.target_update_env_steps or learner.target_update_updates


def _slower(learner: LearnerConfig) -> str:
    return f"learner.learning_rate={learner.first_rate / 10:g} (now {learner.first_rate:g})"


def _and_clip(learner: LearnerConfig) -> str:
    return ", learner.max_grad_norm=10 (now null)" if learner.max_grad_norm is None else ""


def _value_bound(snapshot: Snapshot) -> float | None:
    """r_max / (1 - gamma), which no discounted return exceeds; None without rewards or without discount."""
    if not snapshot.reward_abs_max or snapshot.discount is None or snapshot.discount >= 1.0:
        return None
    return snapshot.reward_abs_max / (1.0 - snapshot.discount)


def _value_scale(window: Window) -> float | None:
    """The typical size of values: the mean |reward| of a step times the horizon 1 / (1 - gamma)."""
    discount = window[-1].discount
    rewards = [each.reward_abs_mean for each in window if each.reward_abs_mean]
    if discount is None or not rewards:
        return None
    horizon = 1.0 / (1.0 - discount) if discount < 1.0 else window[-1].train_length_mean
    return rewards[-1] * horizon if horizon else None


def _is_mature(snapshot: Snapshot, config: ResolvedConfig) -> bool:
    """Whether less than a tenth is left of the initial error of the evaluated version's values.

    gamma^(n k) is left after k copies of the target network, each fitted exactly; nothing is left once
    rewards have come back from the end of an episode to its beginning.
    """
    learner, version = config.learner, snapshot.evaluation_version or 0
    polyak = learner.target_polyak
    copies = version / config.target_update_updates if polyak is None else version * polyak
    steps = config.actors.n_step * copies
    return config.actors.discount**steps < TENTH or steps > (snapshot.train_length_mean or math.inf)


def _sample(mean: float | None, std: float | None, count: int | None) -> Sample | None:
    """The sample, if it is known and has a spread."""
    if mean is None or std is None or count is None or count < 2:
        return None
    return Sample(mean, std, count)


def _evaluated_returns(now: Snapshot) -> Sample | None:
    return _sample(now.evaluation_return_mean, now.evaluation_return_std, now.evaluation_episodes)


def _mean_since(now: Histogram | None, before: Histogram | None) -> float | None:
    """The mean of the values counted in between; a histogram with fewer was reset when the run resumed."""
    if now is None or before is None:
        return None
    counted = now - before if now.count >= before.count else now
    return counted.sum / counted.count if counted.count > 0 else None
