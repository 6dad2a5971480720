"""One immutable snapshot of a run's metrics at one moment.

Owns names, units and help texts of the metrics; must not import torch, ray or gymnasium.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from replay_service.histogram import Histogram

Kind = Literal["counter", "gauge", "histogram", "text"]

ByLabel = Mapping[str, float]
"""A value for each of a label's few values: a role, a shard, min | mean | max."""
ByLabels = Mapping[str, ByLabel]
"""The same for two labels."""


def _figure(kind: Kind, text: str) -> Any:
    return field(metadata={"kind": kind, "help": text, "labels": ()})


def _later(kind: Kind, text: str, *labels: str) -> Any:
    """A figure that is None until it is known; one with labels maps their values to its own."""
    return field(default=None, metadata={"kind": kind, "help": text, "labels": labels})


def _text(default: Any) -> Any:
    """Words: in metrics.jsonl and on the screen, but nothing that Prometheus could count."""
    return field(default=default, metadata={"kind": "text", "help": "", "labels": ()})


@dataclass(frozen=True)
class Snapshot:
    """The figures of a run at one moment. None: not known yet. Field names are the exported names.

    However many actors there are, the number of figures stays the same: over actors there are sums, or
    min, mean and max. Only those labelled by shard grow, by at most ten for each.
    """

    run_seconds: float = _figure("gauge", "Seconds since the run began")
    env_steps_total: int = _figure("counter", "Environment steps stored by the shards")
    episodes_total: int = _figure("counter", "Training episodes ended")
    inserted_transitions_total: int = _figure("counter", "Transitions inserted into replay")
    sampled_transitions_total: int = _figure("counter", "Transitions consumed by the learner")
    updates_total: int = _figure("counter", "Optimizer steps")
    skipped_updates_total: int = _figure("counter", "Updates left out: loss or gradient was not finite")
    restarts_total: int = _figure("counter", "Dead actors, shards and evaluators replaced")
    env_steps_per_second: float = _figure(
        "gauge", "Environment steps a second, over the newest chunks of actors"
    )
    updates_per_second: float = _figure("gauge", "Optimizer steps a second, over the last interval")
    samples_per_insert: float = _figure("gauge", "Sampled over inserted transitions since learning started")
    samples_per_insert_target: float = _figure("gauge", "The ratio that pacing keeps")
    epsilon: float | None = _figure("gauge", "Exploration rate of the newest rollout")
    train_return_mean: float | None = _figure("gauge", "Mean return of the last 100 training episodes")
    train_length_mean: float | None = _figure("gauge", "Mean length of the last 100 training episodes")
    evaluation_return_mean: float | None = _figure("gauge", "Mean greedy return of the newest evaluation")
    best_return_mean: float | None = _figure("gauge", "Confirmed mean greedy return of the best version")
    loss: float | None = _figure("gauge", "Mean loss of the newest learning chunk")
    q_mean: float | None = _figure("gauge", "Mean Q-value of the actions taken, newest learning chunk")
    td_error_mean: float | None = _figure("gauge", "Mean absolute TD error, newest learning chunk")
    grad_norm_mean: float | None = _figure("gauge", "Mean gradient norm before clipping, newest chunk")
    grad_norm_clipped_mean: float | None = _figure("gauge", "The same after clipping")
    target_gap: float | None = _figure(
        "gauge", "Mean difference of online and target weights, before the newest copy"
    )
    learning_rate: float | None = _figure("gauge", "Learning rate of the newest update")
    policy_lag_updates: int | None = _figure(
        "gauge", "Learner version less the newest rollout's acting version"
    )
    learner_update_share: float = _figure(
        "gauge", "Share of the last interval spent updating, drawing minibatches left out"
    )
    learner_wait_share: float = _figure(
        "gauge", "Share of the last interval the learner waited for replies of shards"
    )
    actor_busy_share: float = _figure(
        "gauge", "Share of time that actors worked, over their newest chunks, mean"
    )
    replay_transitions: int = _figure("gauge", "Transitions held in replay")
    replay_bytes: int = _figure("gauge", "Bytes held in replay")

    # Is it learning?
    weights_version: int | None = _later("gauge", "Version of the newest weights")
    loss_max: float | None = _later("gauge", "Largest loss of a minibatch, newest learning chunk")
    q_min: float | None = _later("gauge", "Smallest Q-value of an action taken, newest chunk")
    q_max: float | None = _later("gauge", "Largest Q-value of an action taken, newest chunk")
    discount: float | None = _later("gauge", "The discount gamma")
    reward_abs_mean: float | None = _later("gauge", "Mean absolute reward of a step, over the last interval")
    reward_abs_max: float | None = _later("gauge", "Largest absolute reward of a step since the run began")
    action_entropy_ratio: float | None = _later(
        "gauge", "Entropy of the actions taken over its maximum, over the last interval"
    )
    start_value_mean: float | None = _later("gauge", "Mean max Q where the last 100 training episodes began")
    evaluations_total: int | None = _later("counter", "Evaluations played, confirmations included")
    evaluation_version: int | None = _later("gauge", "Version of the weights in the newest evaluation")
    evaluation_episodes: int | None = _later("gauge", "Episodes of the newest evaluation")
    evaluation_return_std: float | None = _later(
        "gauge", "Standard deviation of returns in the newest evaluation"
    )
    evaluation_start_value_mean: float | None = _later(
        "gauge", "Mean max Q where the newest evaluation's episodes began"
    )
    evaluation_discounted_return_mean: float | None = _later(
        "gauge", "What that value foretells: their mean discounted return, rewards as learned from"
    )
    evaluation_start_value_error_std: float | None = _later(
        "gauge", "Standard deviation of value less discounted return over those episodes"
    )
    evaluation_truncation_discount_mean: float | None = _later(
        "gauge", "Mean over those episodes of gamma^length where one was truncated, else 0"
    )
    evaluation_truncated_ratio: float | None = _later("gauge", "Share of those episodes that were truncated")
    evaluation_action_entropy_ratio: float | None = _later(
        "gauge", "Entropy of the newest evaluation's greedy actions over its maximum"
    )
    best_version: int | None = _later("gauge", "Version of the best weights")
    best_return_std: float | None = _later("gauge", "Standard deviation of returns when it was confirmed")
    first_return_mean: float | None = _later(
        "gauge", "Mean return of the first training episodes, up to 100 from before learning began"
    )

    # Where does time go?
    role_seconds_total: ByLabels | None = _later(
        "counter", "Seconds that roles spent in each phase, summed over a role's processes", "role", "phase"
    )
    actor_env_steps_per_second: ByLabel | None = _later(
        "gauge", "Env steps for each second of work, over the actors' newest chunks", "stat"
    )
    credits_in_flight: ByLabel | None = _later("gauge", "Chunks granted and not yet reported", "kind")
    pushes_in_flight: int | None = _later("gauge", "Blocks pushed and not yet confirmed by a shard")
    unacknowledged_transitions: int | None = _later("gauge", "Transitions in those blocks")
    prefetched_requests: int | None = _later("gauge", "Sample requests that the learner has in flight")
    pushed_bytes_total: int | None = _later("counter", "Encoded bytes that shards took in")
    sampled_bytes_total: int | None = _later("counter", "Bytes of the rows that shards drew, with windows")

    # Is the data fresh?
    sample_policy_lag_updates: Histogram | None = _later(
        "histogram", "Updates between acting and learning, of the rows in one minibatch of 16"
    )
    sample_age_transitions: Histogram | None = _later(
        "histogram", "Transitions inserted since a drawn row was, of the rows in one request of 32"
    )
    actor_policy_lag_updates: ByLabel | None = _later(
        "gauge", "Learner version less acting version, over the actors' newest chunks", "stat"
    )
    actor_epsilon: ByLabel | None = _later(
        "gauge", "Exploration rate, over the actors' newest chunks", "stat"
    )
    priority_staleness_mean_updates: float | None = _later(
        "gauge", "Mean updates between asking for a minibatch and learning from it, newest chunk"
    )
    priority_staleness_max_updates: int | None = _later("gauge", "The most of them")
    drawn_transitions_total: int | None = _later(
        "counter", "Transitions drawn by shards, prefetched included"
    )
    evicted_transitions_total: int | None = _later("counter", "Transitions that made room for newer ones")
    late_priorities_total: int | None = _later("counter", "Priorities that came after their row was evicted")
    repeated_pushes_total: int | None = _later("counter", "Pushes refused because they were held already")
    reuse_mean: float | None = _later("gauge", "Times a transition was drawn, mean over all inserted")
    shard_transitions: ByLabel | None = _later("gauge", "Transitions that a shard holds", "shard")
    shard_capacity_transitions: ByLabel | None = _later("gauge", "Transitions that it can hold", "shard")
    shard_bytes: ByLabel | None = _later("gauge", "Bytes that it holds", "shard")
    shard_mass: ByLabel | None = _later("gauge", "Its sum of priorities p^alpha", "shard")
    shard_priority_min: ByLabel | None = _later("gauge", "Its smallest p^alpha", "shard")
    shard_priority_max: ByLabel | None = _later("gauge", "Its largest p^alpha, every 5 seconds", "shard")
    shard_priority_effective_ratio: ByLabel | None = _later(
        "gauge", "Effective sample size of its priorities over its count: 1 if all are alike", "shard"
    )

    # Is anything dying?
    roles_wanted: ByLabel | None = _later("gauge", "Roles that the run should have", "role")
    roles_up: ByLabel | None = _later("gauge", "Roles that have come up and were not replaced", "role")
    role_restarts_total: ByLabels | None = _later(
        "counter", "Roles replaced, by what was lost: process, object, frozen or memory", "role", "cause"
    )
    env_restarts_total: ByLabel | None = _later(
        "counter", "Environments made anew, by what they did: raise, invalid, hang or memory", "cause"
    )
    process_cpu_seconds_total: ByLabel | None = _later(
        "counter", "CPU seconds, summed over a role's processes", "role"
    )
    process_resident_memory_bytes: ByLabel | None = _later(
        "gauge", "Resident memory with what is shared, summed over a role's processes", "role"
    )
    machine_memory_bytes: int | None = _later("gauge", "Memory of the coordinator's machine")
    machine_memory_available_bytes: int | None = _later("gauge", "What of it new processes may take")
    shared_memory_bytes: int | None = _later("gauge", "Size of /dev/shm on the coordinator's machine")
    shared_memory_used_bytes: int | None = _later("gauge", "What of it is taken")
    checkpoints_total: int | None = _later("counter", "Checkpoints taken")
    checkpoint_age_seconds: float | None = _later("gauge", "Seconds since the newest checkpoint was complete")
    checkpoint_duration_seconds: float | None = _later("gauge", "Seconds that it took")
    checkpoint_bytes: int | None = _later("gauge", "Bytes that it has on disk")

    # What is wrong, and what is slow?
    diagnosis_active: ByLabel | None = _later("gauge", "1 while this finding of diagnosis holds", "finding")
    verdict: str | None = _text(None)
    warnings: tuple[str, ...] = _text(())


def figures(snapshot: Snapshot) -> dict[str, Any]:
    """Name -> value of what is known: one line of metrics.jsonl, as msgspec writes it.

    A figure with labels is a dict by label value, one with two a dict of dicts. Of a Histogram msgspec makes
    {"counts": [...], "sum": x}, its buckets bounded by replay_service.histogram.BOUNDS. Words stay words.
    """
    return {name: value for name, value in vars(snapshot).items() if value is not None}
