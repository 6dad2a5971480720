"""Going on from a checkpoint: bit for bit in the serial runtime, and what is refused or passed over.

Tests cluster/lives.py too: a serial run begins another life after each checkpoint.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from qfleet_checkpoints import flip_a_bit
from qfleet_configs import resolved_config
from qfleet_serial import RECALL, SMALL, Recorder, train_serial

from cluster.api import prepare, train
from cluster.checkpoints import resume as resume_module
from cluster.checkpoints.checkpoint import Checkpoint, checkpoint_folders, read_checkpoint, shard_folder
from cluster.checkpoints.resume import Resumed, allowed_changes, newest_good_checkpoint, reopen
from cluster.cli import run
from cluster.record.run_dir import RunDir, read_config, read_incarnations, read_spec
from cluster.record.run_lock import RunLock
from cluster.report.runs import concerns_learning
from cluster.settings.config import ConfigError
from cluster.settings.load_config import dump_config, load_config
from cluster.settings.resolved import ResolvedConfig
from learner.weights import load_weights
from replay_service.journal.segments import segment_paths
from replay_service.shard import ReplayShard
from replay_service.sharding import shard_capacities

CHECKPOINTS = ("checkpoint.every_updates=100", "stop.target_return=1e9")
FAMILY = {
    "plain": (),
    "prioritized over shards": ("replay.sampling=prioritized", "replay.num_shards=3"),
    "rainbow": (
        "replay.sampling=prioritized",
        "learner.double=true",
        "learner.dueling=true",
        "learner.noisy=true",
        "learner.head=c51",
        "actors.n_step=3",
        "actors.epsilon_start=0",
        "actors.epsilon_end=0",
    ),
    "quantiles": ("learner.head=qr", "learner.loss=huber", "actors.n_step=2"),
    "implicit quantiles, munchausen, adamw, masks": (
        "env.id=qfleet_test_envs:Signals",
        "learner.network=mlp",
        "learner.head=iqn",
        "learner.munchausen=true",
        "learner.noisy=true",
        "learner.optimizer=adamw",
        "learner.weight_decay=0.01",
        "learner.target_update_updates=null",
        "learner.target_update_env_steps=300",
        "replay.sampling=prioritized",
        "actors.n_step=3",
    ),
    "polyak and layer norm": ("learner.target_polyak=0.01", "learner.layer_norm=true"),
    "apex": (
        "replay.sampling=prioritized",
        "replay.num_shards=2",
        "learner.double=true",
        "learner.dueling=true",
        "actors.epsilon_ladder={base: 0.4, alpha: 7.0}",
        "actors.n_step=3",
    ),
    "several minibatches a request": ("replay.sampling=prioritized", "replay.minibatches_per_request=3"),
    "normalized observations": ("learner.normalize_observations=true",),
    "several arrays and masks": (
        "env.id=qfleet_test_envs:Signals",
        "env.stack=2",
        "actors.n_step=2",
        "learner.network=mlp",
        "learner.normalize_observations=true",
        "replay.sampling=prioritized",
        "replay.num_shards=2",
        "replay.compression=lz4",
    ),
    "small replay": ("replay.capacity=300", "replay.sampling=prioritized"),
    "stacked frames, table of seeds": (*RECALL[len(SMALL) :], "stop.updates=200", "evaluation.episodes=3"),
}


def replay_of(run_dir: Path, checkpoint: Path, scratch: Path) -> list[np.ndarray]:
    """Every transition that a checkpoint holds, with its windows and TD errors, shard after shard."""
    config, arrays = read_config(run_dir), []
    schema = read_spec(run_dir).block_schema(config.actors.n_step)
    capacities = shard_capacities(config.replay.capacity or 0, config.replay.num_shards)
    for index, capacity in enumerate(capacities):
        folder = scratch / f"{run_dir.name}-{checkpoint.name}-{index}"
        shutil.copytree(shard_folder(checkpoint, index), folder)
        shard = ReplayShard(
            config.replay,
            schema,
            shard=index,
            incarnation=1_000,
            capacity=capacity,
            seed=np.random.SeedSequence(0),
            folder=folder,
        )
        store, selector = shard.store, shard.selector
        transitions = store.gather(np.arange(store.oldest_key, store.next_key))
        arrays += [
            transitions.action,
            transitions.reward,
            transitions.discount,
            transitions.policy_version,
            *transitions.windows.values(),
        ]
        arrays.append(selector.td_errors(store.oldest_key, store.next_key))
        arrays.append(np.array([store.oldest_key % capacity, shard.status().earlier_env_steps_total]))
    return arrays


def assert_equal_runs(one: Path, other: Path, scratch: Path) -> None:
    """Weights, learner's state and replay of the last checkpoints are equal bit for bit."""
    weights = [load_weights(run / "weights" / "latest.safetensors")[0] for run in (one, other)]
    np.testing.assert_array_equal(*weights)
    checkpoints = [read_checkpoint(checkpoint_folders(run / "checkpoints")[-1]) for run in (one, other)]
    assert checkpoints[0].manifest.version == checkpoints[1].manifest.version
    assert checkpoints[0].learner.tensors.keys() == checkpoints[1].learner.tensors.keys()
    for name, array in checkpoints[0].learner.tensors.items():
        np.testing.assert_array_equal(array, checkpoints[1].learner.tensors[name], err_msg=name)
    replays = [
        replay_of(run, checkpoint.folder, scratch)
        for run, checkpoint in zip((one, other), checkpoints, strict=True)
    ]
    for array, twin in zip(*replays, strict=True):
        np.testing.assert_array_equal(array, twin)


def resume(run_dir: Path, overrides: Sequence[str] = ()) -> Recorder:
    recorder = Recorder()
    config = load_config(run_dir / "config.yaml", overrides)
    train(config, run_dir, resume="must", view=lambda *_: recorder)
    return recorder


@pytest.mark.parametrize("member", FAMILY)
def test_a_run_in_two_lives_equals_one_in_one(tmp_path: Path, member: str) -> None:
    settings = (*SMALL, *CHECKPOINTS, *FAMILY[member])
    train_serial(tmp_path / "whole", settings)
    train_serial(tmp_path / "halves", (*settings, "stop.updates=100"))
    recorder = resume(tmp_path / "halves", ["stop.updates=200"])
    assert "resumed from checkpoint 0, version 100" in recorder.events
    assert_equal_runs(tmp_path / "whole", tmp_path / "halves", tmp_path)


def test_killed_after_a_checkpoint_it_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    settings = (*SMALL, *CHECKPOINTS, "replay.sampling=prioritized", "stop.updates=300")
    train_serial(tmp_path / "whole", settings)
    run_dir = tmp_path / "killed"
    endless = load_config(None, (*settings, "stop.updates=1000000", "checkpoint.keep=1000"))
    (tmp_path / "endless.yaml").write_text(dump_config(endless))
    command = [sys.executable, "-m", "cluster.main", "train", str(tmp_path / "endless.yaml")]
    command += ["--run-dir", str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: (run_dir / "checkpoints" / "checkpoint-000001").is_dir(), seconds=60)
        process.send_signal(signal.SIGKILL)
    # Whatever came after the second checkpoint is repeated, the very same.
    for folder in checkpoint_folders(run_dir / "checkpoints"):
        if folder.name > "checkpoint-000001":
            shutil.rmtree(folder)
    resume(run_dir, ["stop.updates=300"])
    assert_equal_runs(tmp_path / "whole", run_dir, tmp_path)
    assert len((run_dir / "resumes.jsonl").read_text().splitlines()) == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train_serial(run_dir, (*SMALL, *CHECKPOINTS, "replay.num_shards=2"))
    assert [path.name for path in checkpoint_folders(run_dir / "checkpoints")] == [
        "checkpoint-000000",
        "checkpoint-000001",
    ]
    return run_dir


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def segment(run_dir: Path, checkpoint: str, shard: int) -> Path:
    return next((run_dir / "checkpoints" / checkpoint / f"shard-{shard}").iterdir())


@pytest.mark.parametrize("spoil", ["a bit of a segment", "an unfinished checkpoint"])
def test_a_bad_checkpoint_is_named_and_the_one_before_taken(run_dir: Path, spoil: str) -> None:
    """tests/cluster/checkpoints/test_checkpoint.py has the other ways in which one is bad."""
    newest = run_dir / "checkpoints" / "checkpoint-000001"
    if spoil == "a bit of a segment":
        flip_a_bit(segment(run_dir, newest.name, 1))
    else:
        newest.rename(newest.with_name(f"{newest.name}.partial"))
    recorder = resume(run_dir, ["stop.updates=210"])
    assert "resumed from checkpoint 0, version 100" in recorder.events
    warned = [event for event in recorder.events if event.startswith("warning")]
    if spoil == "a bit of a segment":
        assert len(warned) == 1
        assert "checkpoint-000001" in warned[0]
        assert "is not the file of this checkpoint" in warned[0]
        assert warned[0].endswith("; an older checkpoint is taken")
    else:
        assert warned == []


def test_with_no_good_checkpoint_each_is_named(run_dir: Path) -> None:
    before = sorted(run_dir.rglob("*"))
    for checkpoint in ("checkpoint-000000", "checkpoint-000001"):
        flip_a_bit(segment(run_dir, checkpoint, 0))
    with pytest.raises(
        ConfigError, match=r"(?s)no checkpoint can be used.*checkpoint-000001.*checkpoint-000000"
    ):
        resume(run_dir, ["stop.updates=210"])
    assert sorted(run_dir.rglob("*")) == before


def test_what_changes_the_meaning_of_the_run_is_refused_key_by_key(run_dir: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        resume(run_dir, ["actors.n_step=2", "learner.hidden_sizes=[8]", "run.seed=7", "stop.updates=300"])
    for name in ("actors.n_step: 3 -> 2", "learner.hidden_sizes: ", "run.seed: 0 -> 7"):
        assert name in str(refused.value)
    assert "stop.updates" not in str(refused.value)


def test_harmless_changes_are_taken_and_told(run_dir: Path) -> None:
    recorder = resume(run_dir, ["stop.updates=210", "learner.learning_rate=1e-4", "replay.compression=lz4"])
    told = next(event for event in recorder.events if event.startswith("changed since"))
    assert "stop.updates: 200 -> 210" in told
    assert "learner.learning_rate: 0.0005 -> 0.0001" in told
    assert read_config(run_dir).learner.learning_rate == 1e-4
    note = json.loads((run_dir / "resumes.jsonl").read_text())
    assert note["changed"]["stop.updates"] == 210


@pytest.mark.parametrize(
    "change", ["threads=2", "capture=true", "compile=true", "dense_products=blas", "device=cpu"]
)
def test_how_the_learner_computes_may_differ(change: str) -> None:
    saved = resolved_config("learner.device=auto")
    (allowed,) = allowed_changes(saved, resolved_config("learner.device=auto", f"learner.{change}"))
    assert allowed.name == f"learner.{change.partition('=')[0]}"
    assert not concerns_learning(allowed.name)


def test_totals_go_on_and_files_are_added_to(run_dir: Path) -> None:
    before = (run_dir / "metrics.jsonl").read_text()
    last = json.loads(before.splitlines()[-1])
    recorder = resume(run_dir, ["stop.updates=260"])
    after = (run_dir / "metrics.jsonl").read_text()
    assert after.startswith(before)
    lines = [json.loads(line) for line in after[len(before) :].splitlines()]
    for name in ("env_steps_total", "updates_total", "inserted_transitions_total", "episodes_total"):
        assert all(line[name] >= last[name] for line in lines), name
    assert recorder.snapshots[-1].updates_total == 260


def test_a_run_that_has_ended_says_so_and_goes_on_only_with_another_limit(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}

    before = files()
    assert run(["train", "--run-dir", str(run_dir), "--resume"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("this run has already ended: stop.updates = 200 reached; give it another limit")
    assert f"qfleet eval {run_dir}" in said
    assert files() == before
    result = train(load_config(run_dir / "config.yaml"), run_dir, resume="auto")
    assert (result.outcome.final.updates_total, result.outcome.solved) == (200, False)
    recorder = resume(run_dir, ["stop.updates=210"])
    assert recorder.snapshots[-1].updates_total == 210


def test_auto_begins_where_there_is_nothing_and_goes_on_where_there_is(tmp_path: Path) -> None:
    for expected, updates in ((False, 100), (True, 120)):
        config = load_config(None, [*SMALL, *CHECKPOINTS, f"stop.updates={updates}"])
        recorder = Recorder()
        train(config, tmp_path / "run", resume="auto", view=lambda *_, r=recorder: r)
        assert any(event.startswith("resumed from") for event in recorder.events) == expected


def test_auto_begins_anew_before_the_first_checkpoint(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    recorder = Recorder()
    config = load_config(run_dir / "config.yaml", ["stop.updates=210"])
    with pytest.raises(ConfigError, match=r"holds no checkpoint.*--resume auto"):
        train(config, run_dir, resume="must", view=lambda *_: recorder)
    train(config, run_dir, resume="auto", view=lambda *_: recorder)
    assert any("begins anew" in event for event in recorder.events)


def test_two_processes_never_run_in_one_folder(run_dir: Path) -> None:
    holder = RunLock(run_dir)
    try:
        with pytest.raises(ConfigError, match="another process is running in it"):
            resume(run_dir, ["stop.updates=210"])
    finally:
        holder.close()


def test_the_checkpoint_is_chosen_under_the_lock(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that had the folder before may write one more until it lets go."""
    chosen = []

    def choose(checkpoints: Path) -> tuple[Checkpoint, tuple[str, ...]]:
        with pytest.raises(ConfigError, match="another process is running in it"):
            RunLock(run_dir)
        chosen.append(checkpoints)
        return newest_good_checkpoint(checkpoints)

    monkeypatch.setattr(resume_module, "newest_good_checkpoint", choose)
    reopened(run_dir)
    assert len(chosen) == 1


def reopened(run_dir: Path, *overrides: str) -> Resumed:
    """What a run would go on from, in the local runtime."""
    given = ("run.runtime=local", *overrides)
    opened = reopen(run_dir, read_resolved(run_dir, given), read_spec(run_dir), required=True)
    opened.run_dir.close()
    assert opened.resumed is not None
    return opened.resumed


def read_resolved(run_dir: Path, overrides: Sequence[str]) -> ResolvedConfig:
    return prepare(load_config(run_dir / "config.yaml", overrides)).config


@pytest.mark.parametrize("restarts", [0, 10])
def test_incarnations_come_from_what_was_used(run_dir: Path, restarts: int) -> None:
    used = read_incarnations(run_dir)
    assert set(used) == {"actor 0", "shard 0", "shard 1", "learner", "evaluator"}
    with closing(RunDir(RunLock(run_dir))) as directory:
        directory.write_incarnations({"shard 0": 17, "actor 0": 12, "actor 1": 5})
    resumed = reopened(run_dir, f"run.restarts={restarts}", "actors.num_actors=3")
    assert resumed.incarnations["shard 0"] == 18
    assert resumed.incarnations["shard 1"] == used["shard 1"] + 1
    assert resumed.incarnations["actor 0"] == 13
    assert resumed.incarnations["actor 1"] == 6
    # One that never was there is above what any actor had at the checkpoint.
    assert resumed.incarnations["actor 2"] > 0
    assert not resumed.paced_anew


def test_a_journal_that_was_restored_in_part_is_not_taken_for_all_of_it(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(run_dir / "replay")

    def killed(source: Path, target: Path) -> None:
        shutil.copyfile(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(resume_module, "link_or_copy", killed)
        with pytest.raises(KeyboardInterrupt):
            reopened(run_dir)
    assert not (run_dir / "replay" / "shard-0").exists()
    reopened(run_dir)
    for shard in ("shard-0", "shard-1"):
        assert segment_paths(run_dir / "replay" / shard)


def test_a_run_of_an_older_version_skips_what_it_may_have_used(run_dir: Path) -> None:
    (run_dir / "incarnations.json").unlink()
    assert min(reopened(run_dir).incarnations.values()) > 10_000


def test_seeds_of_evaluations_after_the_checkpoint_are_not_used_again(run_dir: Path) -> None:
    with (run_dir / "evaluations.jsonl").open("a") as lines:
        lines.write('{"version": 900, "seed_domain": 1800, "ret\n[]\n{"seed_domain": "x"}\n')
        lines.write('{"version": 950, "seed_domain": 1900, "returns": []}\n')
    (run_dir / "resumes.jsonl").write_text("no JSON\n")
    assert reopened(run_dir).manifest.run.selection.last_domain == 1900


@pytest.mark.parametrize("ratio", [1, 32])
def test_another_ratio_holds_from_here_on(run_dir: Path, ratio: int) -> None:
    before = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    recorder = resume(run_dir, [f"pacing.samples_per_insert={ratio}", "stop.updates=328"])
    inserted = recorder.snapshots[-1].inserted_transitions_total - before["inserted_transitions_total"]
    # 128 updates of 16 samples; acting may be ahead by about two chunks of 32 transitions.
    assert 128 * 16 / ratio <= inserted <= 128 * 16 / ratio + 96
    # And another life later still.
    recorder = resume(run_dir, ["stop.updates=456"])
    inserted = recorder.snapshots[-1].inserted_transitions_total - before["inserted_transitions_total"]
    assert 256 * 16 / ratio <= inserted <= 256 * 16 / ratio + 96


@pytest.mark.parametrize("on_disk_full", ["continue", "stop"])
def test_a_full_disk_under_a_checkpoint(tmp_path: Path, on_disk_full: str) -> None:
    """A limit of the size of files stands for the disk: segments do not fit, weights do."""
    settings = (*SMALL, *CHECKPOINTS, f"replay.on_disk_full={on_disk_full}", "stop.updates=300")
    (tmp_path / "config.yaml").write_text(dump_config(load_config(None, settings)))
    command = [sys.executable, "-m", "cluster.main", "train", str(tmp_path / "config.yaml")]
    ended = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    if on_disk_full == "stop":
        assert ended.returncode == 1
        assert "no room for" in ended.stderr
    else:
        assert ended.returncode == 0, ended.stderr
        assert "warning: no checkpoint: the disk is full for shard 0" in ended.stdout
        assert "stop.updates = 300 reached" in ended.stdout
    assert load_weights(tmp_path / "run" / "weights" / "latest.safetensors")[0].size
    # Nothing half done is left that could be taken for a checkpoint.
    assert all(read_checkpoint(folder) for folder in checkpoint_folders(tmp_path / "run" / "checkpoints"))


def wait_for(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
