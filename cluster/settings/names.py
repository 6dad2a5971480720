"""The setting that somebody means who writes another name.

Owns the names that other libraries use, and the search for the nearest; must not import torch or ray.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

_ALIASES: Mapping[str, str] = {
    "actors.discount": "gamma discount_factor",
    "actors.envs_per_actor": "num_envs n_envs num_envs_per_worker num_envs_per_env_runner",
    "actors.epsilon_decay_env_steps": (
        "exploration_fraction epsilon_decay eps_decay epsilon_timesteps anneal_steps "
        "epsilon_decay_steps exploration_steps"
    ),
    "actors.epsilon_end": (
        "exploration_final_eps end_e eps_end eps_min epsilon_min final_epsilon min_epsilon"
    ),
    "actors.epsilon_start": "epsilon eps exploration_initial_eps start_e eps_start eps_greedy",
    "actors.n_step": "nstep n_steps nsteps multi_step n_step_return",
    "actors.num_actors": "num_workers n_workers num_env_runners workers num_rollout_workers",
    "actors.reward_clip": "clip_rewards clip_reward reward_clipping",
    "actors.steps_per_chunk": "rollout_length rollout_fragment_length unroll_length",
    "env.id": "env_id gym_id env_name environment game task",
    "env.kwargs": "env_kwargs env_config env_args",
    "env.max_episode_steps": "max_episode_length horizon time_limit_steps",
    "env.stack": "frame_stack framestack frame_stacks stack_size n_stack history_length",
    "evaluation.episodes": "n_eval_episodes eval_episodes num_eval_episodes evaluation_duration",
    "evaluation.every_updates": "eval_freq eval_interval evaluation_interval eval_every",
    "checkpoint.every_seconds": "save_freq checkpoint_freq checkpoint_frequency save_interval",
    "learner.adam_epsilon": "adam_eps optimizer_epsilon",
    "learner.batch_size": "minibatch_size train_batch_size batchsize mini_batch_size",
    "learner.device": "cuda gpu num_gpus use_cuda",
    "learner.double": "double_q double_dqn ddqn use_double",
    "learner.head": "distributional categorical use_c51",
    "learner.hidden_sizes": "net_arch fcnet_hiddens hidden_units hidden_size hidden_dim layers",
    "learner.initial_weights": "load load_model pretrained checkpoint_path",
    "learner.learning_rate": "lr step_size alpha_lr",
    "learner.loss": "loss_fn criterion",
    "learner.max_grad_norm": "grad_clip clip_grad gradient_clip clip_grad_norm gradient_clipping",
    "learner.network": "policy model net policy_type",
    "learner.noisy": "noisy_nets noisy_net use_noisy",
    "learner.num_atoms": "n_atoms atoms num_quantiles n_quantiles",
    "learner.target_polyak": "tau polyak soft_update",
    "learner.target_update_updates": (
        "target_update_interval target_network_update_freq target_network_frequency target_update "
        "target_update_freq target_update_frequency"
    ),
    "learner.value_range": "v_min v_max vmin vmax",
    "pacing.learning_starts": "learning_start warmup warmup_steps start_steps min_replay_size",
    "pacing.samples_per_insert": (
        "train_freq train_frequency gradient_steps replay_ratio utd_ratio utd update_freq"
    ),
    "replay.capacity": "buffer_size replay_size memory_size buffer_capacity replay_buffer_size",
    "replay.importance_exponent_start": "beta prioritized_replay_beta per_beta beta_start",
    "replay.priority_exponent": "alpha prioritized_replay_alpha per_alpha",
    "replay.sampling": "prioritized_replay prioritized per use_per",
    "run.seed": "random_seed rng_seed",
    "stop.env_steps": (
        "total_timesteps timesteps total_steps num_steps max_steps steps max_timesteps num_frames "
        "total_frames frames training_steps train_steps"
    ),
    "stop.seconds": "time_limit max_time time_total_s timeout max_seconds",
    "stop.target_return": "reward_threshold target_reward solved_at stop_reward",
}
"""Setting -> the names that other libraries give it."""
_BY_ALIAS = {alias: setting for setting, aliases in _ALIASES.items() for alias in aliases.split()}


def section_in(hint: Any) -> type | None:
    """The section that a type hint like `LadderConfig | None` stands for; None for a plain value."""
    options = typing.get_args(hint) or (hint,)
    return next((o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), None)


def settings_of(kind: type, prefix: str = "") -> Iterator[str]:
    """The full names of all settings below a section."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        section = section_in(hints[item.name])
        if section is None:
            yield f"{prefix}{item.name}"
        else:
            yield from settings_of(section, f"{prefix}{item.name}.")


def nearest(name: str, kind: type) -> str | None:
    """The full name of the setting below `kind` that the unknown `name` most probably means; None for none.

    First the names that other libraries use, then its own section, then every section.
    """
    settings = list(settings_of(kind))
    *above, leaf = name.lower().replace("-", "_").split(".")
    section = f"{'.'.join(above)}."
    by_leaf = {setting.rpartition(".")[2]: setting for setting in reversed(settings)}
    own = {setting.removeprefix(section): setting for setting in settings if setting.startswith(section)}
    tries = ((_BY_ALIAS, 1.0), (by_leaf, 1.0), (own, 0.7), (by_leaf, 0.7), (own, 0.5), (_BY_ALIAS, 0.85))
    for known, cutoff in tries:
        if near := difflib.get_close_matches(leaf, known, n=1, cutoff=cutoff):
            return known[near[0]]
    return None
