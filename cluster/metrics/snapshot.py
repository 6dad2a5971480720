"""One immutable snapshot of a run's metrics at one moment, with the verdict and findings of diagnosis.

Owns the metrics' names, types, units and help texts; must not import torch, ray or gymnasium.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from replay_service.histogram import Histogram

Group = Literal["rollout", "train", "eval", "replay", "time", "system", "custom"]
"""What a metric is about; trackers show those of a group together."""
Kind = Literal["counter", "gauge", "histogram", "text"]

ByLabel = Mapping[str, float]
"""Label value -> number. The label is a role, a shard, or a statistic: min, mean and max."""
ByLabels = Mapping[str, ByLabel]
"""Value of a first label -> value of a second -> number."""

Stage = Literal["actor", "replay", "learner", "pacing", "network", "memory", "evaluation", "communication"]
_LIMITS: Mapping[Stage, str] = {
    "actor": "acting",
    "replay": "replay",
    "learner": "learning",
    "pacing": "pacing",
    "network": "the network",
    "memory": "memory",
    "evaluation": "evaluation",
    "communication": "communication between the ranks of the learner",
}
FindingName = Literal[
    "diverging_q",
    "catastrophic_forgetting",
    "overestimation",
    "stale_data",
    "few_episodes_per_lane",
    "collapsed_action_choice",
    "reward_scale",
    "degenerate_priorities",
]


@dataclass(frozen=True)
class Verdict:
    """The stage that limits the speed of a run, and a text with the evidence and the setting to change."""

    stage: Stage
    text: str

    @property
    def line(self) -> str:
        """Stage and text in one line."""
        return f"{_LIMITS[self.stage]} limits the speed: {self.text}"


@dataclass(frozen=True)
class Finding:
    """Something wrong with learning, first seen at update since_updates; the texts are of the newest look."""

    name: FindingName
    since_updates: int
    evidence: str
    cause: str
    cure: str

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ").replace(" q", " Q")

    @property
    def text(self) -> str:
        """Title, evidence, cause and cure in one line."""
        return f"{self.title}: {self.evidence}. Cause: {self.cause}. Cure: {self.cure}"


def _metric(group: Group, kind: Kind, text: str, *labels: str, default: Any = None) -> Any:
    """A metric that has its default until it is known; with labels, it maps their values to numbers.

    Metrics of kind "text" are not for Prometheus.
    """
    return field(default=default, metadata={"group": group, "kind": kind, "help": text, "labels": labels})


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The metrics of a run at one moment. None or 0: not known yet. Field names are the exported names.

    The number of series does not grow with the number of actors: over actors there are sums, or min, mean and
    max. Each shard adds at most ten. "Newest chunks" are those reported since the last snapshot.
    """

    run_seconds: float = _metric("time", "gauge", "Seconds since the run began", default=0.0)
    acting_seconds: float = _metric(
        "time", "gauge", "Seconds since the first environment step, without start-ups", default=0.0
    )
    env_steps_total: int = _metric("time", "counter", "Environment steps stored by the shards", default=0)
    episodes_total: int = _metric("rollout", "counter", "Training episodes finished", default=0)
    inserted_transitions_total: int = _metric(
        "replay", "counter", "Transitions inserted into replay", default=0
    )
    sampled_transitions_total: int = _metric(
        "replay", "counter", "Transitions consumed by the learner", default=0
    )
    updates_total: int = _metric("train", "counter", "Optimizer steps", default=0)
    skipped_updates_total: int = _metric(
        "train", "counter", "Updates skipped because loss or gradient was not finite", default=0
    )
    unequal_ranks_total: int = _metric(
        "train", "counter", "Chunks after which the ranks of the learner had unequal weights", default=0
    )
    restarts_total: int = _metric(
        "system", "counter", "Actors, shards, learners and evaluators replaced", default=0
    )
    env_steps_per_second: float = _metric(
        "time", "gauge", "Environment steps per second, over the actors' newest chunks", default=0.0
    )
    updates_per_second: float = _metric(
        "time", "gauge", "Optimizer steps per second since the last snapshot", default=0.0
    )
    samples_per_insert: float = _metric(
        "replay", "gauge", "Transitions sampled per transition inserted, since learning started", default=0.0
    )
    samples_per_insert_target: float = _metric(
        "replay", "gauge", "Samples per insert that pacing aims at", default=0.0
    )
    epsilon: float | None = _metric("rollout", "gauge", "Exploration rate of the newest rollout chunk")
    train_return_mean: float | None = _metric(
        "rollout", "gauge", "Mean return of the last 100 training episodes"
    )
    train_length_mean: float | None = _metric(
        "rollout", "gauge", "Mean length of the last 100 training episodes"
    )
    evaluation_return_mean: float | None = _metric(
        "eval", "gauge", "Mean greedy return of the newest evaluation"
    )
    best_return_mean: float | None = _metric(
        "eval", "gauge", "Mean greedy return of the best version in its second evaluation"
    )
    loss: float | None = _metric("train", "gauge", "Mean loss of the newest learning chunk")
    q_mean: float | None = _metric(
        "train", "gauge", "Mean Q-value of the actions taken, newest learning chunk"
    )
    td_error_mean: float | None = _metric("train", "gauge", "Mean absolute TD error, newest learning chunk")
    grad_norm_mean: float | None = _metric(
        "train", "gauge", "Mean gradient norm before clipping, newest learning chunk"
    )
    grad_norm_clipped_mean: float | None = _metric(
        "train", "gauge", "Mean gradient norm after clipping, newest learning chunk"
    )
    target_gap: float | None = _metric(
        "train", "gauge", "Mean absolute difference of online and target weights, just before the newest copy"
    )
    learning_rate: float | None = _metric("train", "gauge", "Learning rate of the newest update")
    policy_lag_updates: int | None = _metric(
        "rollout", "gauge", "Learner version minus the version that acted in the newest rollout chunk"
    )
    learner_update_share: float = _metric(
        "time",
        "gauge",
        "Share of the learner's time spent on updates without drawing minibatches, newest chunks",
        default=0.0,
    )
    learner_wait_share: float = _metric(
        "time",
        "gauge",
        "Share of the learner's time spent waiting for replies of shards, newest chunks",
        default=0.0,
    )
    actor_busy_share: float = _metric(
        "time", "gauge", "Share of time in which actors had a chunk to work on, newest chunks", default=0.0
    )
    replay_transitions: int = _metric("replay", "gauge", "Transitions held in replay", default=0)
    replay_bytes: int = _metric("replay", "gauge", "Bytes held in replay", default=0)

    # Is it learning?
    weights_version: int | None = _metric("train", "gauge", "Version of the newest weights")
    loss_max: float | None = _metric("train", "gauge", "Largest loss of a minibatch, newest learning chunk")
    q_min: float | None = _metric(
        "train", "gauge", "Smallest Q-value of an action taken, newest learning chunk"
    )
    q_max: float | None = _metric(
        "train", "gauge", "Largest Q-value of an action taken, newest learning chunk"
    )
    discount: float | None = _metric("train", "gauge", "Discount factor gamma")
    reward_abs_mean: float | None = _metric(
        "rollout", "gauge", "Mean absolute reward of a step since the last snapshot"
    )
    reward_abs_max: float | None = _metric(
        "rollout", "gauge", "Largest absolute reward of a step since the run began"
    )
    action_entropy_ratio: float | None = _metric(
        "rollout", "gauge", "Entropy of the actions taken since the last snapshot, as a share of its maximum"
    )
    start_value_mean: float | None = _metric(
        "rollout", "gauge", "Mean max Q in the first observations of the last 100 training episodes"
    )
    evaluations_total: int | None = _metric("eval", "counter", "Evaluations played, second ones included")
    evaluation_version: int | None = _metric(
        "eval", "gauge", "Version of the weights in the newest evaluation"
    )
    evaluation_episodes: int | None = _metric("eval", "gauge", "Number of episodes in the newest evaluation")
    evaluation_return_std: float | None = _metric(
        "eval", "gauge", "Standard deviation of returns in the newest evaluation"
    )
    evaluation_start_value_mean: float | None = _metric(
        "eval", "gauge", "Mean max Q in the first observations of the newest evaluation's episodes"
    )
    evaluation_discounted_return_mean: float | None = _metric(
        "eval", "gauge", "Mean discounted return of the newest evaluation, with the learner's rewards"
    )
    evaluation_start_value_error_std: float | None = _metric(
        "eval",
        "gauge",
        "Standard deviation of initial max Q minus discounted return in the newest evaluation",
    )
    evaluation_truncation_discount_mean: float | None = _metric(
        "eval",
        "gauge",
        "Mean of gamma^length over the newest evaluation's episodes, counting 0 if not truncated",
    )
    evaluation_truncated_ratio: float | None = _metric(
        "eval", "gauge", "Share of the newest evaluation's episodes that were truncated"
    )
    evaluation_action_entropy_ratio: float | None = _metric(
        "eval", "gauge", "Entropy of the newest evaluation's greedy actions, as a share of its maximum"
    )
    best_version: int | None = _metric("eval", "gauge", "Version of the best weights")
    best_return_std: float | None = _metric(
        "eval", "gauge", "Standard deviation of returns of the best version in its second evaluation"
    )
    first_return_mean: float | None = _metric(
        "rollout",
        "gauge",
        "Mean return of the first training episodes: up to 100 from before learning began, but at least 10",
    )

    # Where does time go?
    role_seconds_total: ByLabels | None = _metric(
        "time", "counter", "Seconds spent in each phase, summed over the processes of a role", "role", "phase"
    )
    actor_env_steps_per_second: ByLabel | None = _metric(
        "time",
        "gauge",
        "Environment steps per second of work in an actor's last chunk: min, mean, max",
        "stat",
    )
    credits_in_flight: ByLabel | None = _metric(
        "system", "gauge", "Chunks granted and not yet reported", "kind"
    )
    pushes_in_flight: int | None = _metric(
        "replay", "gauge", "Blocks pushed and not yet acknowledged by a shard"
    )
    unacknowledged_transitions: int | None = _metric(
        "replay", "gauge", "Transitions in blocks that no shard has acknowledged yet"
    )
    prefetched_requests: int | None = _metric(
        "replay", "gauge", "Sample requests that the learner has in flight"
    )
    pushed_bytes_total: int | None = _metric(
        "replay", "counter", "Encoded bytes of the blocks that shards inserted"
    )
    learner_threads: int | None = _metric("train", "gauge", "Threads of the learner's updates on the CPU")
    sampled_bytes_total: int | None = _metric(
        "replay", "counter", "Bytes of the transitions that shards sampled, frame windows included"
    )

    # Is the data fresh?
    sample_policy_lag_updates: Histogram | None = _metric(
        "replay",
        "histogram",
        "Updates between acting and learning, for the transitions of one minibatch in 16",
    )
    sample_age_transitions: Histogram | None = _metric(
        "replay",
        "histogram",
        "Transitions inserted since a sampled transition was, for one sample request in 32",
    )
    actor_policy_lag_updates: ByLabel | None = _metric(
        "rollout",
        "gauge",
        "Learner version minus acting version in an actor's last chunk: min, mean, max",
        "stat",
    )
    actor_epsilon: ByLabel | None = _metric(
        "rollout", "gauge", "Exploration rate in an actor's last chunk: min, mean, max", "stat"
    )
    priority_staleness_mean_updates: float | None = _metric(
        "replay",
        "gauge",
        "Mean number of updates between requesting a minibatch and learning from it, newest chunk",
    )
    priority_staleness_max_updates: int | None = _metric(
        "replay",
        "gauge",
        "Largest number of updates between requesting a minibatch and learning from it, newest chunk",
    )
    drawn_transitions_total: int | None = _metric(
        "replay", "counter", "Transitions sampled by shards, prefetched ones included"
    )
    evicted_transitions_total: int | None = _metric(
        "replay", "counter", "Transitions evicted to make room for newer ones"
    )
    evicted_draws: Histogram | None = _metric(
        "replay", "histogram", "How often a transition had been drawn when it was evicted"
    )
    evicted_undrawn_share: float | None = _metric(
        "replay", "gauge", "Share of evicted transitions that nobody drew"
    )
    evicted_draws_effective_ratio: float | None = _metric(
        "replay",
        "gauge",
        "Effective sample size of the draws of evicted transitions, per transition (1: all alike)",
    )
    lane_transitions: float | None = _metric("replay", "gauge", "Transitions that replay holds for each lane")
    lane_episodes: float | None = _metric(
        "rollout", "gauge", "Episodes that replay holds for each lane, at the mean length of the last 100"
    )
    target_age_env_steps: float | None = _metric(
        "train", "gauge", "Environment steps between two copies to the target network, at the reuse achieved"
    )
    late_priorities_total: int | None = _metric(
        "replay", "counter", "Priorities that arrived after their transition was evicted"
    )
    repeated_pushes_total: int | None = _metric(
        "replay", "counter", "Pushes refused because the shard held the block already"
    )
    refused_pushes_total: int | None = _metric(
        "replay", "counter", "Pushes refused because their actor had been replaced"
    )
    refused_priorities_total: int | None = _metric(
        "replay", "counter", "Priorities refused because they were for an earlier life of their shard"
    )
    reuse_mean: float | None = _metric(
        "replay", "gauge", "Mean number of times that a transition was sampled, over all inserted"
    )
    shard_transitions: ByLabel | None = _metric("replay", "gauge", "Transitions held by a shard", "shard")
    shard_capacity_transitions: ByLabel | None = _metric(
        "replay", "gauge", "Transitions that a shard can hold", "shard"
    )
    shard_bytes: ByLabel | None = _metric("replay", "gauge", "Bytes held by a shard", "shard")
    shard_mass: ByLabel | None = _metric("replay", "gauge", "Sum of a shard's priorities p^alpha", "shard")
    shard_priority_min: ByLabel | None = _metric(
        "replay", "gauge", "Smallest priority p^alpha in a shard", "shard"
    )
    shard_priority_max: ByLabel | None = _metric(
        "replay", "gauge", "Largest priority p^alpha in a shard, measured every 5 seconds", "shard"
    )
    shard_priority_effective_ratio: ByLabel | None = _metric(
        "replay",
        "gauge",
        "Effective sample size of a shard's priorities per transition held (1: all equal)",
        "shard",
    )

    # Is anything dying?
    roles_wanted: ByLabel | None = _metric("system", "gauge", "Roles that the run should have", "role")
    roles_up: ByLabel | None = _metric("system", "gauge", "Roles that are up", "role")
    role_restarts_total: ByLabels | None = _metric(
        "system", "counter", "Roles replaced, by cause: process, object, frozen or memory", "role", "cause"
    )
    env_restarts_total: ByLabel | None = _metric(
        "rollout", "counter", "Environments restarted, by cause: raise, invalid, hang or memory", "cause"
    )
    process_cpu_seconds_total: ByLabel | None = _metric(
        "system", "counter", "CPU seconds, summed over the processes of a role", "role"
    )
    process_resident_memory_bytes: ByLabel | None = _metric(
        "system",
        "gauge",
        "Resident memory, shared pages included, summed over the processes of a role",
        "role",
    )
    machine_memory_bytes: int | None = _metric("system", "gauge", "Memory of the coordinator's machine")
    machine_memory_available_bytes: int | None = _metric(
        "system", "gauge", "Memory available to new processes on the coordinator's machine"
    )
    shared_memory_bytes: int | None = _metric(
        "system", "gauge", "Size of /dev/shm on the coordinator's machine"
    )
    shared_memory_used_bytes: int | None = _metric(
        "system", "gauge", "Used bytes of /dev/shm on the coordinator's machine"
    )
    checkpoints_total: int | None = _metric("system", "counter", "Checkpoints completed")
    checkpoint_age_seconds: float | None = _metric(
        "system", "gauge", "Seconds since the newest checkpoint was complete"
    )
    checkpoint_duration_seconds: float | None = _metric(
        "system", "gauge", "Duration of the newest checkpoint"
    )
    checkpoint_bytes: int | None = _metric("system", "gauge", "Size of the newest checkpoint on disk")

    # What else?
    custom: ByLabel | None = _metric(
        "custom", "gauge", "Metrics that callbacks of a Python program added", "name"
    )

    # What is wrong, and what is slow?
    diagnosis_active: ByLabel | None = _metric(
        "system", "gauge", "1 while a finding of diagnosis holds", "finding"
    )
    verdict: Verdict | None = _metric("system", "text", "The stage that limits the speed")
    warnings: tuple[Finding, ...] = _metric(
        "system", "text", "The findings of diagnosis that hold now", default=()
    )

    @property
    def headline_return(self) -> float | None:
        """The greedy return of the best version; before there is one, the mean of training episodes."""
        return self.train_return_mean if self.best_return_mean is None else self.best_return_mean


def known_metrics(snapshot: Snapshot) -> dict[str, Any]:
    """Name -> value of all that is known: one line of metrics.jsonl, as msgspec writes it.

    A metric with one label is a dict by its values, one with two labels a dict of dicts. msgspec writes a
    Histogram as {"counts": [...], "sum": x}, its buckets bounded by replay_service.histogram.BOUNDS.
    """
    return {name: value for name, value in vars(snapshot).items() if value is not None}
