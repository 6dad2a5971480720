"""What each setting means, in which unit it is given, and how it is chosen if nobody gives it.

Owns the lines of docs/settings.md and of `qfleet settings`; names, types and defaults are those of the
dataclasses. Must not import torch, ray or gymnasium.
"""

import dataclasses
import json
import re
import typing
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, Literal, NamedTuple

from cluster.settings.config import RunConfig
from cluster.settings.names import section_in
from cluster.wording import wrapped
from learner.config import NETWORKS


class Meaning(NamedTuple):
    """automatic: how the setting is chosen if it is left out; empty for one that has its default."""

    text: str
    unit: str = ""
    automatic: str = ""


class Setting(NamedTuple):
    """One line of the table. name: with its section."""

    name: str
    type: str
    default: str
    meaning: Meaning


MEANINGS: Mapping[str, Meaning] = {
    "env.id": Meaning("a Gymnasium id, package:id, package.module:factory or folder/file.py:factory"),
    "env.kwargs": Meaning("arguments of the environment"),
    "env.wrappers": Meaning(
        "callables that take the environment, the innermost first, each package.module:name or "
        "{package.module:name: arguments}"
    ),
    "env.drop_observation_keys": Meaning(
        "keys of Dict observations that are left out", automatic="MiniGrid's mission"
    ),
    "env.stack": Meaning("frames in one observation", "frames", "4 for Atari, else 1"),
    "env.action_mask": Meaning(
        'whether info["action_mask"] restricts actions', automatic="whether one is seen in the first 50 steps"
    ),
    "env.discretize": Meaning(
        "bins into which each dimension of continuous actions is divided; MultiDiscrete ones are flattened",
        "bins",
    ),
    "env.max_episode_steps": Meaning(
        "steps after which an episode is truncated",
        "env steps",
        "the environment's own; if it never ends in the probe 1,000 (tables: 4 x states, at least 200)",
    ),
    "env.image_layout": Meaning(
        "the order of the axes of images: channels last (HWC) or first (CHW)",
        automatic="the axis that differs from two equal ones holds the channels",
    ),
    "env.backend": Meaning(
        "how lanes are stepped: registered vector form, one after the other, a process each",
        automatic="the vector form if it plays the same game, else one after the other",
    ),
    "actors.num_actors": Meaning(
        "actor processes",
        "processes",
        "1 for cheap native environments and in the serial runtime, else cores - 1; cores if learning takes "
        "little beside the environment, without images",
    ),
    "actors.min_actors": Meaning(
        "actors that a cluster must have room for before a run begins; the others follow",
        "processes",
        "num_actors",
    ),
    "actors.envs_per_actor": Meaning("lanes of each actor", "lanes", "16 for native environments, else 8"),
    "actors.steps_per_chunk": Meaning(
        "steps of each lane in one piece of work, whose transitions are pushed as one block",
        "env steps",
        "30 x (stack + n_step) for images, else by speed 32, 16 or 4",
    ),
    "actors.epsilon_start": Meaning("share of random actions at the start", "share"),
    "actors.epsilon_end": Meaning("share of random actions at the end", "share"),
    "actors.epsilon_decay_env_steps": Meaning(
        "steps of all actors together over which it falls linearly",
        "env steps",
        "by speed 100,000, 50,000, 10,000 or 2,000, or a fifth of the run's env steps",
    ),
    "actors.epsilon_ladder": Meaning("if given, each lane keeps its own share of random actions"),
    "actors.epsilon_ladder.base": Meaning(
        "lane i of N acts at random with probability base^(1 + alpha i / (N - 1))", "share"
    ),
    "actors.epsilon_ladder.alpha": Meaning("see base"),
    "actors.n_step": Meaning("rewards that a transition sums", "env steps", "3; 1 for tables"),
    "actors.discount": Meaning("gamma", "share"),
    "actors.reward_clip": Meaning("for learning only: rewards are clipped to [-c, c]", "reward"),
    "actors.life_loss_ends_episode": Meaning("for learning only: a lost life counts as an end"),
    "actors.pushes_in_flight": Meaning("blocks that an actor has sent and no shard has confirmed", "blocks"),
    "actors.env_restarts": Meaning(
        "restarts of environments, and of actors because of them, before the run fails", "restarts"
    ),
    "actors.chunk_deadline_seconds": Meaning(
        "an actor whose chunk takes longer is replaced",
        "s",
        "the largest of a minute, 20 times the longest chunk and 4 times the longest start; for the first "
        "chunk 20 times run.frozen_seconds",
    ),
    "actors.memory_limit_bytes": Meaning(
        "an actor is replaced if its process and those that it has started hold more",
        "bytes",
        "half the memory shared by the actors, while less than a tenth of it is left",
    ),
    "replay.capacity": Meaning(
        "transitions that all shards hold", "transitions", "100,000, or what 2 GiB of frames allow"
    ),
    "replay.num_shards": Meaning("processes among which replay is divided", "processes"),
    "replay.sampling": Meaning(
        "whether transitions are drawn alike or by priority", automatic="by priority; alike for tables"
    ),
    "replay.priority_exponent": Meaning("alpha: a priority is (|TD error| + priority_epsilon)^alpha"),
    "replay.priority_epsilon": Meaning("see priority_exponent"),
    "replay.importance_exponent_start": Meaning("beta of the importance weights at the start; 1 at the end"),
    "replay.importance_anneal_updates": Meaning("updates over which beta rises", "updates"),
    "replay.minibatches_per_request": Meaning(
        "most minibatches that the learner asks for at once",
        "minibatches",
        "what 16 MiB of frames allow, at most 64; in the serial runtime at most 8, 1 by priority",
    ),
    "replay.prefetch_requests": Meaning(
        "most requests that the learner sends ahead, as measured times ask for; 0: none", "requests"
    ),
    "replay.compression": Meaning(
        "whether images are compressed in memory: Atari's to a twentieth, at half the sampling throughput"
    ),
    "replay.persist": Meaning(
        "when transitions are written to disk: never (then there are no checkpoints), with checkpoints, or "
        "each block before its push is acknowledged",
        automatic="with checkpoints",
    ),
    "replay.on_disk_full": Meaning("whether a run goes on in memory when the disk is full, or ends"),
    "learner.network": Meaning(
        f"one of {', '.join(NETWORKS)}, or package.module:factory",
        automatic="a table for state numbers, nature_cnn for images of 36 pixels or more, else mlp",
    ),
    "learner.hidden_sizes": Meaning("sizes of the hidden layers of an MLP", "units"),
    "learner.layer_norm": Meaning("whether a layer norm stands before each ReLU"),
    "learner.image_hidden_size": Meaning(
        "width of an image network's layer between convolutions and outputs",
        "units",
        "512 for nature_cnn, 256 for impala_cnn, 128 for minatar_cnn",
    ),
    "learner.impala_width": Meaning("factor on the channels 16, 32, 32 of impala_cnn"),
    "learner.pool_size": Meaning(
        "side of the maps to which image networks pool before the dense layers; null: no pooling", "pixels"
    ),
    "learner.spectral_norm": Meaning(
        "whether weights of impala_cnn's residual convolutions are divided by their largest singular value"
    ),
    "learner.normalize_observations": Meaning(
        "whether observed numbers, but not pixels and flags, enter networks as (x - mean) / deviation, "
        "clipped to 10 deviations, by running statistics of sampled minibatches"
    ),
    "learner.head": Meaning(
        "what is learned of the return: mean (q), distribution (c51), quantiles (qr), or any of them (iqn)"
    ),
    "learner.num_atoms": Meaning("fixed values of c51, quantiles of qr", "atoms"),
    "learner.iqn_cosines": Meaning("cosines through which head iqn sees a fraction", "cosines"),
    "learner.iqn_quantiles": Meaning("quantiles of iqn drawn for each transition, N", "quantiles"),
    "learner.iqn_target_quantiles": Meaning("quantiles of iqn drawn for its target, N'", "quantiles"),
    "learner.iqn_acting_quantiles": Meaning("fixed quantiles by which iqn acts, K", "quantiles"),
    "learner.value_range": Meaning("lowest and highest return that c51 can express", "return"),
    "learner.dueling": Meaning("whether value and advantages have streams of their own"),
    "learner.noisy": Meaning("whether exploration is noise in the weights"),
    "learner.loss": Meaning("loss of the TD error, for head q: its square, or linear above huber_delta"),
    "learner.huber_delta": Meaning(
        "TD error at which the Huber loss becomes linear; of heads qr and iqn, too", "return"
    ),
    "learner.double": Meaning("whether the online network chooses the action that the target network rates"),
    "learner.munchausen": Meaning(
        "whether targets follow the soft policy softmax(Q / temperature) and reward likely actions"
    ),
    "learner.munchausen_alpha": Meaning("factor on that reward, the action's scaled log-probability"),
    "learner.munchausen_temperature": Meaning("temperature of the soft policy", "return"),
    "learner.munchausen_clip": Meaning("least scaled log-probability, temperature x ln pi", "return"),
    "learner.optimizer": Meaning("the optimizer"),
    "learner.weight_decay": Meaning("adamw multiplies all weights by 1 - rate x weight_decay in each update"),
    "learner.learning_rate": Meaning(
        "learning rate at the start",
        automatic="0.0005; 0.02 for tables, falling to 0.0005 over 20,000 updates or 60 % of the run's",
    ),
    "learner.learning_rate_end": Meaning("learning rate at the end of its decay"),
    "learner.learning_rate_decay_updates": Meaning(
        "updates over which it falls linearly; null: never", "updates"
    ),
    "learner.adam_epsilon": Meaning("epsilon of Adam"),
    "learner.max_grad_norm": Meaning("norm to which gradients are clipped; null: never"),
    "learner.max_skipped_updates": Meaning(
        "updates skipped because loss or gradient is not finite before the run fails", "updates"
    ),
    "learner.batch_size": Meaning("transitions in a minibatch", "transitions"),
    "learner.num_learners": Meaning("processes that learn together, each from its part of every minibatch"),
    "learner.target_update_updates": Meaning(
        "updates between two copies to the target network",
        "updates",
        "200, unless target_update_env_steps is given",
    ),
    "learner.target_update_env_steps": Meaning(
        "the same in env steps: samples_per_insert and batch_size make updates of them", "env steps"
    ),
    "learner.target_polyak": Meaning(
        "share by which the target network moves in each update, instead of copies", "share"
    ),
    "learner.updates_per_chunk": Meaning(
        "updates in one piece of work", "updates", "8 for images, else by speed 64, 32 or 16"
    ),
    "learner.device": Meaning("auto, cpu, cuda or cuda:N", automatic="a GPU if there is one"),
    "learner.threads": Meaning(
        "threads of an update on the CPU",
        "threads",
        "1; in one learner beside other processes by trial: 2, 4 ... while cores idle and updates get faster",
    ),
    "learner.dense_products": Meaning(
        "library that computes the dense layers' large products in updates on the CPU",
        automatic="oneDNN from a size on, BLAS where vectors are of AVX2; in one learner beside other "
        "processes what timed updates show",
    ),
    "learner.convolution_layout": Meaning(
        "order in memory of the images that convolutions take in updates",
        automatic="channels last, for minatar_cnn first; in one learner beside other processes on a CPU what "
        "timed updates show",
    ),
    "learner.initial_weights": Meaning(
        "run folder, or file of weights by name, with which both networks begin"
    ),
    "learner.precision": Meaning(
        "in which the learner's networks compute; weights, targets, losses, optimizer and acting are float32"
    ),
    "learner.compile": Meaning(
        "whether torch.compile compiles the learner's passes, where there is a compiler"
    ),
    "learner.capture": Meaning(
        "whether the update is recorded as one CUDA graph, on a GPU; not yet run on one"
    ),
    "pacing.samples_per_insert": Meaning(
        "transitions sampled for each one inserted after learning_starts",
        automatic="what takes the learner half its time: 8 to, by speed, 8, 16, 32 or 64",
    ),
    "pacing.learning_starts": Meaning(
        "transitions in replay before the first update",
        "transitions",
        "by speed 1,000, 500 or 200, or a twentieth of the run's env steps, at least a batch",
    ),
    "evaluation.every_updates": Meaning(
        "updates between two evaluations",
        "updates",
        "1,000, below 1,000 steps/s 2,000; for tables 5,000, or a tenth of the run's updates if that "
        "is between",
    ),
    "evaluation.episodes": Meaning(
        "greedy episodes of an evaluation",
        "episodes",
        "20; 200 for tables, from 1,000 steps/s on; 10 for slow environments",
    ),
    "evaluation.num_envs": Meaning(
        "environments that play an evaluation's episodes at the same time",
        "environments",
        "at most 32 of a native vector form, else at most 8; and what an eighth of the free memory holds",
    ),
    "stop.env_steps": Meaning(
        "steps after which the run ends", "env steps", "1,000,000 if no other limit is given"
    ),
    "stop.updates": Meaning("updates after which the run ends", "updates"),
    "stop.seconds": Meaning("time after the first environment step after which the run ends", "s"),
    "stop.target_return": Meaning(
        "mean return of both evaluations (the second at 99 % confidence) at which the run ends; null: never",
        "return",
        "the return at which the environment counts as solved, if it states one",
    ),
    "checkpoint.every_seconds": Meaning(
        "time between two checkpoints; null: only at the end; not in the serial runtime", "s"
    ),
    "checkpoint.every_updates": Meaning("updates between two checkpoints; null: by time only", "updates"),
    "checkpoint.keep": Meaning("newest checkpoints that stay, beside the best", "checkpoints"),
    "checkpoint.weights_every_seconds": Meaning("time between two writes of the newest weights", "s"),
    "metrics.every_seconds": Meaning("time between two lines of metrics.jsonl", "s"),
    "metrics.host": Meaning("address at which metrics are served"),
    "metrics.port": Meaning("port at which metrics are served; 0: a free one"),
    "metrics.trackers": Meaning(
        "tensorboard and wandb (Weights & Biases), which get the run, too; each needs the extra of its name"
    ),
    "run.runtime": Meaning(
        "where roles run: local processes, a Ray of its own, the cluster of RAY_ADDRESS, or one process",
        automatic="cluster where RAY_ADDRESS is set, else local",
    ),
    "run.preset": Meaning(
        "preset below all that is given; auto: the environment's own, none: none",
        automatic="the environment's own",
    ),
    "run.seed": Meaning("decides all random numbers"),
    "run.restarts": Meaning("roles replaced before the run fails", "restarts"),
    "run.stall_seconds": Meaning(
        "time without inserts and updates after which the run fails, unless work is known to take longer", "s"
    ),
    "run.frozen_seconds": Meaning(
        "time without an answer after which a shard is replaced; other roles have multiples of it", "s"
    ),
    "run.wait_for_cluster_seconds": Meaning("time that a run waits for room on a cluster", "s"),
    "run.measure_speed": Meaning(
        "whether speed is measured: fast (from 3,000 steps/s on), brisk (from 1,000), moderate, slow (below "
        "100); else fast",
        automatic="true, but false in the serial runtime",
    ),
}
_WIDTH = 116
_COLUMNS = ("setting", "type", "default", "unit", "meaning", "chosen automatically")


def settings(pattern: str = "") -> list[Setting]:
    """The settings whose name or meaning holds the pattern (a regular expression), in order of sections.

    Raises re.error for a pattern that is none.
    """
    wanted = re.compile(pattern, re.IGNORECASE)
    found = (Setting(name, words, default, MEANINGS[name]) for name, words, default in _fields(RunConfig))
    return [each for each in found if wanted.search(" ".join((each.name, *each.meaning)))]


def page() -> str:
    """The text of docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "`qfleet settings PATTERN` shows some of them; `python -m cluster.settings.catalog` writes",
        "this page. Give a setting as `--set section.name=value` or in a YAML file. Durations may be written",
        "as `10m`, counts as `100k` or `1e6`, sizes as `16GB`. Where the last column says how, a setting",
        "that is left out is chosen to suit environment and machine; a run saves the choice in its",
        "`config.yaml`.",
    ]
    section = ""
    for name, type_words, default, meaning in settings():
        if name.partition(".")[0] != section:
            section = name.partition(".")[0]
            lines += ["", f"## {section}", ""]
            lines += [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
        cells = (f"`{name}`", type_words, f"`{default}`", meaning.unit, meaning.text, meaning.automatic)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def text(found: list[Setting]) -> str:
    """A line for each setting, its meaning, and how it is chosen; at most 120 characters wide."""
    blocks = []
    for name, type_words, default, meaning in found:
        unit = f" [{meaning.unit}]" if meaning.unit else ""
        blocks.append(f"{name}={default}{unit} ({type_words})")
        automatic = f"automatic: {meaning.automatic}" if meaning.automatic else ""
        blocks += [f"    {wrapped(line, _WIDTH, '    ')}" for line in (meaning.text, automatic) if line]
    return "\n".join(blocks)


def _fields(kind: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Full name, type in words and default of each setting below a section."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        section, hint = section_in(hints[item.name]), hints[item.name]
        optional = NoneType in typing.get_args(hint)
        if section is None or optional:
            value = getattr(kind(), item.name)
            yield f"{prefix}{item.name}", _type_words(hint), _default_words(value)
        if section is not None:
            yield from _fields(section, f"{prefix}{item.name}.")


def _type_words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        numbers = {int, float} & set(typing.get_args(hint))
        return "list of numbers" if numbers else "list"
    if typing.get_origin(hint) is dict:
        return "names with values"
    if options := typing.get_args(hint):
        return " or ".join(map(_type_words, options))
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", NoneType: "null"}
    return names.get(hint, "names with values")


def _default_words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    print(page(), end="")
