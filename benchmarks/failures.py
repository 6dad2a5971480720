"""Injects every failure of docs/failures.md into a real run: what is lost, for how long, what the run says.

`python -m benchmarks.chaos --table` measures them all; the tests go through the same functions.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.followed_run import FollowedRun, Line

# One actor and one shard: training cannot move before the lost role is back.
SMALL = {
    "actors.num_actors": "1",
    "actors.envs_per_actor": "16",
    "actors.steps_per_chunk": "16",
    "learner.hidden_sizes": "[32]",
    "learner.batch_size": "32",
    "learner.updates_per_chunk": "16",
    "replay.num_shards": "1",
    "replay.capacity": "50000",
    "replay.sampling": "prioritized",
    "replay.persist": "continuous",
    "pacing.learning_starts": "500",
    "pacing.samples_per_insert": "4",
    "evaluation.every_updates": "200",
    "evaluation.episodes": "4",
    "checkpoint.every_seconds": "3",
    "metrics.every_seconds": "0.1",
    "run.restarts": "100",
    "stop.target_return": "1000000",
    "stop.env_steps": "1000000000",
}
# The default of 30 would only make each measurement longer.
FROZEN_SECONDS = 6.0
_FILE_BYTES = 60 << 20


Runtime = Literal["local", "ray", "serial", "cluster"]


class CannotBeInjectedError(RuntimeError):
    """This machine lacks something that the failure needs; the message names it."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one injection. seconds: from it until training moved again; limit_seconds: the part of
    them that the run waits before it takes a role for frozen; said: the run's events meanwhile.
    """

    lost: str
    seconds: float
    said: tuple[str, ...]
    limit_seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A failure that can be injected: play does so once, in a new folder, on one of the runtimes."""

    name: str
    title: str
    play: Callable[[Path, Runtime], Outcome]
    runtimes: tuple[Runtime, ...] = ("local", "ray")


def restarts(line: Line, kind: str) -> int:
    """Number of replacements of this kind of role."""
    return int(sum((line.get("role_restarts_total") or {}).get(kind, {}).values()))


def arguments(settings: Mapping[str, str], env: str = "CartPole-v1") -> list[str]:
    """Arguments of `qfleet train`."""
    return [env, *(part for name, value in settings.items() for part in ("--set", f"{name}={value}"))]


@contextmanager
def small_run(
    folder: Path, runtime: Runtime, env: Mapping[str, str] | None = None, /, **settings: str
) -> Iterator[FollowedRun]:
    """Starts a run and waits until it learns and has an evaluation and a checkpoint. settings: `__` for
    the dot.
    """
    overrides = {name.replace("__", "."): value for name, value in settings.items()}
    given = [*arguments({**SMALL, **overrides}), "--runtime", runtime]
    run = FollowedRun(given, folder / "run", env)
    try:
        run.start()
        wait_until_warm(run)
        yield run
    finally:
        run.close()


def wait_until_warm(run: FollowedRun) -> None:
    """Waits until there are updates, an evaluation and a checkpoint."""

    def is_warm() -> bool:
        line = run.newest()
        saved = line["checkpoints_total"] > 0 or "replay.persist=none" in run.arguments
        return bool(line["updates_total"] > 500 and line["evaluations_total"] > 0 and saved)

    run.wait_for(is_warm, "a run that learns")


def time_until_it_moves(run: FollowedRun, kind: str, before: Line, since: float) -> float:
    """Seconds from `since` until the role has been replaced and transitions and updates come in again.

    For an evaluator: until the next evaluation is done.
    """
    lost = restarts(before, kind)
    first: Line = run.wait_for(
        lambda: next((line for line in run.lines() if restarts(line, kind) > lost), None),
        f"the replacement of {kind}",
    )

    def moves() -> bool:
        now = run.newest()
        if kind == "evaluator":
            return bool(now["evaluations_total"] > first["evaluations_total"])
        up = now["roles_up"] == now["roles_wanted"]
        inserts = now["inserted_transitions_total"] > first["inserted_transitions_total"]
        return bool(up and inserts and now["updates_total"] > first["updates_total"])

    run.wait_for(moves, "training that moves")
    return time.monotonic() - since


def news(run: FollowedRun, since_events: int) -> tuple[str, ...]:
    """The run's events from there on, without routine ones and without their times."""
    texts = [re.split(r" (?:INFO|WARNING|ERROR) +", line)[-1] for line in run.events()[since_events:]]
    routine = ("checkpoint ", "version ")
    return tuple(text for text in texts if not text.startswith(routine) and " END " not in text)


def strike(run: FollowedRun, kind: str, number: signal.Signals) -> tuple[Line, int, float]:
    """Signals the youngest process of the kind; returns the metrics before, the number of events, the time.

    Of the ranks of a learner that is the last one.
    """
    before, events = run.newest(), len(run.events())
    os.kill(run.roles(kind)[-1], number)
    return before, events, time.monotonic()


def role_killed(kind: str, folder: Path, runtime: Runtime, **settings: str) -> Outcome:
    """kill -9."""
    with small_run(folder, runtime, **settings) as run:
        before, events, since = strike(run, kind, signal.SIGKILL)
        seconds = time_until_it_moves(run, kind, before, since)
        said = news(run, events)
        end_well(run)
        return Outcome(lost_words(kind, said), seconds, said)


def role_frozen(kind: str, folder: Path, runtime: Runtime, **settings: str) -> Outcome:
    """SIGSTOP."""
    limits = {name: str(FROZEN_SECONDS) for name in ("run__frozen_seconds", "actors__chunk_deadline_seconds")}
    with small_run(folder, runtime, **limits, **settings) as run:
        before, events, since = strike(run, kind, signal.SIGSTOP)
        seconds = time_until_it_moves(run, kind, before, since)
        said = news(run, events)
        end_well(run)
        limit = {"learner": 2.0, "evaluator": 4.0}.get(kind, 1.0) * FROZEN_SECONDS
        return Outcome(lost_words(kind, said), seconds, said, limit)


def role_out_of_memory(folder: Path, runtime: Runtime) -> Outcome:
    """The kernel kills an actor in a memory cgroup that is too small for it."""
    with memory_cgroup() as group, small_run(folder, runtime) as run:
        before, events = run.newest(), len(run.events())
        (group / "memory.limit_in_bytes").write_text("65536")
        (group / "cgroup.procs").write_text(str(run.roles("actor")[0]))
        seconds = time_until_it_moves(run, "actor", before, time.monotonic())
        said = news(run, events)
        end_well(run)
        return Outcome(lost_words("actor", said), seconds, said)


def driver_killed(folder: Path, runtime: Runtime, *, everything: bool) -> Outcome:
    """The command is killed and started again with --resume auto."""
    with small_run(folder, runtime) as run:
        (run.kill_all if everything else partial(run.finish, signal.SIGKILL))()
        before, events, since = run.newest(), len(run.events()), time.monotonic()
        run.start("--resume", "auto")
        seconds = time_until_it_goes_on(run, before, since)
        said = news(run, events)
        end_well(run)
        return Outcome(lost_since_checkpoint(before, run), seconds, said)


def unwrapped(output: str) -> str:
    """What a run has printed, with the rest of each wrapped line in its first line."""
    return re.sub(r"\s*\n *\| *", " ", output)


def disk_full(folder: Path, runtime: Runtime) -> Outcome:
    """The disk is full for a while: neither journals nor checkpoints can be written."""
    with small_disk(folder), small_run(folder, runtime) as run:
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                since = time.monotonic()
        # Metrics may be the first to miss room; the failure has struck once a journal does.
        run.wait_for(lambda: "in memory only" in unwrapped(run.output()), "a journal without room")
        filler.unlink()
        before = run.newest()

        def moves() -> bool:
            now = run.newest()
            return bool(
                now["updates_total"] > before["updates_total"]
                and now["checkpoints_total"] > before["checkpoints_total"]
            )

        run.wait_for(moves, "a checkpoint once there is room")
        seconds = 0.0 if run.newest()["restarts_total"] == 0 else time.monotonic() - since
        shown = re.findall(r"warning: .*", unwrapped(run.output()))
        end_well(run)
        return Outcome("journal and metrics of that time; training goes on in memory", seconds, tuple(shown))


def node_lost(
    kind: Literal["learner", "shard"], what: Literal["raylet", "node"], folder: Path, runtime: Runtime
) -> Outcome:
    """One of two machines of a cluster is lost with all its roles, or only its raylet is killed."""
    with ray_nodes(cpus=(6, 6)) as nodes, small_run(folder, runtime, nodes.env) as run:
        before, events = run.newest(), len(run.events())
        victim = nodes.of(run.roles(kind)[0])
        since = time.monotonic()
        nodes.kill(victim, everything=what == "node")
        seconds = time_until_it_moves(run, kind, before, since)
        said = news(run, events)
        end_well(run)
        return Outcome(lost_words(kind, said), seconds, said)


def node_drained(folder: Path, runtime: Runtime) -> Outcome:
    """A notice that the learner's machine will be taken away in a minute."""
    with (
        ray_nodes(cpus=(6, 6)) as nodes,
        small_run(folder, runtime, nodes.env, checkpoint__every_seconds="600") as run,
    ):
        before, events = run.newest(), len(run.events())
        victim = nodes.of(run.roles("learner")[0])
        since = time.monotonic()
        nodes.drain(victim, seconds=60)
        run.wait_for(
            lambda: run.newest()["checkpoints_total"] > before["checkpoints_total"], "a checkpoint at once"
        )
        seconds = time.monotonic() - since
        said = news(run, events)
        end_well(run)
        return Outcome(f"nothing: a checkpoint {seconds:.1f} s after the notice", 0.0, said)


def head_lost(folder: Path, runtime: Runtime) -> Outcome:
    """The whole cluster and the driver are lost; the job starts again on another cluster."""
    with ExitStack() as clusters:
        nodes = clusters.enter_context(ray_nodes(cpus=(12,)))
        with small_run(folder, runtime, nodes.env) as run:
            nodes.kill_all()
            run.kill_all()
            before, events = run.newest(), len(run.events())
            clusters.close()
            other = clusters.enter_context(ray_nodes(cpus=(12,)))
            run.env = other.env
            since = time.monotonic()
            run.start("--resume", "auto")
            seconds = time_until_it_goes_on(run, before, since)
            said = news(run, events)
            end_well(run)
            return Outcome(lost_since_checkpoint(before, run), seconds, said)


def time_until_it_goes_on(run: FollowedRun, before: Line, since: float) -> float:
    """Seconds until a restarted run learns from new transitions."""
    old = len(run.lines())

    def moves() -> bool:
        own = run.lines()[old:]
        return bool(
            own
            and own[-1]["updates_total"] > own[0]["updates_total"]
            and own[-1]["inserted_transitions_total"] > own[0]["inserted_transitions_total"]
        )

    run.wait_for(moves, "training that moves")
    return time.monotonic() - since


def lost_since_checkpoint(before: Line, run: FollowedRun) -> str:
    """Updates and transitions that the last line of metrics showed and the checkpoint lacks."""
    resumed = next(text for text in run.events() if "resumed from checkpoint" in text)
    version = int(re.findall(r"version ([\d,]+)", resumed)[0].replace(",", ""))
    after = run.lines()[run.lines().index(before) + 1]
    lost = max(0, before["inserted_transitions_total"] - after["inserted_transitions_total"])
    return (
        f"{max(0, before['weights_version'] - version):,} updates since the checkpoint, {lost:,} transitions"
    )


def lost_words(kind: str, said: Sequence[str]) -> str:
    """The loss, taken from the run's events."""
    text = "\n".join(said)
    if found := re.search(r"goes on from version [\d,]+; ([\d,]+) updates are lost", text):
        return f"{found.group(1)} updates"
    if found := re.search(r"is back and empty: ([\d,]+) transitions", text):
        return f"{found.group(1)} transitions"
    if re.search(r"is back with", text):
        return "no transition"
    return {"actor": "its episodes under way", "evaluator": "the evaluation under way"}.get(kind, "nothing")


def end_well(run: FollowedRun) -> None:
    """Ends the run by SIGTERM. Raises RuntimeError if it does not end with status 143."""
    status = run.finish(signal.SIGTERM)
    if status != 143:
        raise RuntimeError(f"the run ended with {status}\n{run.output()[-3000:]}")


@contextmanager
def memory_cgroup() -> Iterator[Path]:
    """An empty group of cgroup 1's memory controller."""
    group = Path(f"/sys/fs/cgroup/memory/qfleet-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        raise CannotBeInjectedError(f"needs a memory cgroup (version 1) of its own: {error}") from error
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(pid)
        group.rmdir()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mounts a small file system at the folder."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_FILE_BYTES}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        raise CannotBeInjectedError("needs the right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class RayNodes:
    """Several raylets on this machine; the driver is on the head, which offers no CPUs."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.env = {**os.environ, "RAY_ADDRESS": cluster.address}

    def of(self, pid: int) -> Any:
        """The node that this worker process belongs to."""
        import psutil

        parents = {parent.pid for parent in psutil.Process(pid).parents()}
        return next(node for node in self._cluster.worker_nodes if _raylet(node).pid in parents)

    def kill(self, node: Any, *, everything: bool) -> None:
        """kill -9 of the node's raylet, or of every process of the node."""
        import psutil

        raylet = psutil.Process(_raylet(node).pid)
        for process in [raylet, *(raylet.children(recursive=True) if everything else ())]:
            process.kill()
        _raylet(node).wait()

    def drain(self, node: Any, seconds: int) -> None:
        """Tells Ray that the node will go after so long."""
        ray = Path(sys.executable).with_name("ray")
        subprocess.run(
            [ray, "drain-node", "--address", self._cluster.address, "--node-id", node.node_id,
             "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away",
             "--deadline-remaining-seconds", str(seconds)],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    def processes(self) -> list[Any]:
        """Every process of every node, the head's first: it knows of the others."""
        import psutil

        return [
            process
            for node in self._cluster.list_all_nodes()
            for infos in node.all_processes.values()
            for info in infos
            for process in (
                psutil.Process(info.process.pid),
                *psutil.Process(info.process.pid).children(True),
            )
        ]

    def kill_all(self) -> None:
        """kill -9 of every process of every node."""
        for process in self.processes():
            process.kill()


@contextmanager
def ray_nodes(cpus: Sequence[int]) -> Iterator[RayNodes]:
    """A cluster on the loopback interface that notices a dead raylet within seconds."""
    from ray.cluster_utils import Cluster

    from cluster.engines.ray_private import private_environment

    health = {"initial_delay_ms": "1000", "period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "3"}
    folder = tempfile.mkdtemp(prefix="qn-", dir="/tmp")
    # Where the cluster notes its address; the folder must be there.
    names = {f"RAY_health_check_{name}": value for name, value in health.items()} | {"RAY_TMPDIR": folder}
    Path(folder, "ray").mkdir()
    with private_environment(), ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for name, value in names.items():
            os.environ[name] = value
            stack.callback(os.environ.pop, name, None)
        own = {"node_ip_address": "127.0.0.1", "temp_dir": folder, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={**own, "num_cpus": 0}, shutdown_at_exit=False)
        stack.callback(_shut_down, cluster)
        for count in cpus:
            cluster.add_node(node_ip_address="127.0.0.1", num_cpus=count)
        yield RayNodes(cluster)


def _raylet(node: Any) -> Any:
    return node.all_processes["raylet"][0].process


def _shut_down(cluster: Any) -> None:
    for node in cluster.list_all_nodes():
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


FAILURES = (
    Failure("actor", "An actor is killed (kill -9)", partial(role_killed, "actor")),
    Failure("shard-journal", "A shard is killed, `replay.persist=continuous`", partial(role_killed, "shard")),
    Failure(
        "shard-memory",
        "A shard is killed, no journal",
        partial(role_killed, "shard", replay__persist="none"),
    ),
    Failure("learner", "The learner is killed", partial(role_killed, "learner")),
    Failure(
        "rank",
        "The second of two ranks of the learner is killed",
        partial(role_killed, "learner", learner__num_learners="2"),
    ),
    Failure("evaluator", "The evaluator is killed", partial(role_killed, "evaluator")),
    Failure("memory", "The kernel ends an actor for lack of memory", role_out_of_memory),
    Failure("frozen-actor", "An actor is frozen, or its environment hangs", partial(role_frozen, "actor")),
    Failure("frozen-shard", "A shard is frozen (SIGSTOP)", partial(role_frozen, "shard")),
    Failure("frozen-learner", "The learner is frozen", partial(role_frozen, "learner")),
    Failure(
        "frozen-rank",
        "The second of two ranks of the learner is frozen",
        partial(role_frozen, "learner", learner__num_learners="2"),
    ),
    Failure("frozen-evaluator", "The evaluator is frozen", partial(role_frozen, "evaluator")),
    Failure("driver", "The command is killed, and begun again", partial(driver_killed, everything=False)),
    Failure("machine", "The machine is lost, `--resume auto`", partial(driver_killed, everything=True)),
    Failure("disk", "The disk is full for a while", disk_full),
    Failure(
        "raylet",
        "The raylet of the learner's node is killed",
        partial(node_lost, "learner", "raylet"),
        ("cluster",),
    ),
    Failure("node", "The node of a shard is lost", partial(node_lost, "shard", "node"), ("cluster",)),
    Failure("drain", "A node is drained or preempted", node_drained, ("cluster",)),
    Failure("head", "The cluster's head is lost, the job begins again", head_lost, ("cluster",)),
)
