"""The process engine when processes freeze, die, leak or run out of something.

Tests cluster/engines/process_engine.py, cluster/engines/process_calls.py, cluster/engines/role_process.py,
cluster/engines/fork_server.py and cluster/engines/lines.py.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from qfleet_processes import import_path
from qfleet_test_roles import Asker, Counter, DiesAtBirth, Echo

from cluster.engines.engine import Engine, Handle, Need, RoleDied, RoleError
from cluster.engines.process_engine import ForkServers, ProcessEngine

NEED = Need()
SECONDS = 60.0
MAKE_ENGINE = """
import os, sys, time
from cluster.engines.engine import Need
from cluster.engines.process_engine import ForkServers, ProcessEngine
from qfleet_test_roles import Counter, Echo

modules = ("qfleet_test_roles",)
servers = ForkServers(modules, (*modules, "torch"))
engine = ProcessEngine(servers)
engine.start()

def ask(handle, method, *args):
    return engine.get(engine.call(handle, method, *args)[0])
"""
FORK_ENGINE = MAKE_ENGINE.replace("engine.start()", "servers.start(forked=True)\nengine.start()")
"""The same in a process that has loaded everything: no interpreters are started."""


@pytest.fixture
def engine() -> Iterator[ProcessEngine]:
    made = ProcessEngine(ForkServers(("qfleet_test_roles",), ("qfleet_test_roles",)))
    with closing(made):
        made.start()
        yield made


def test_a_process_that_cannot_become_a_role_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    # No environment takes this value; on a host that is short of memory other things fail there.
    monkeypatch.setattr(ProcessEngine, "_free_gpus", lambda *_: ("\0",))
    with closing(ProcessEngine(ForkServers(("qfleet_test_roles",), ("qfleet_test_roles",)))) as engine:
        engine.start()
        with pytest.raises(RoleError, match="embedded null byte"):
            ask(engine, engine.spawn("counter", Counter, need=NEED), Counter.add, 1)


@pytest.fixture
def echo(engine: ProcessEngine) -> Handle[Echo]:
    return engine.spawn("echo", Echo, need=NEED)


def ask(engine: Engine, handle: Handle[Any], method: Callable[..., Any], *args: object) -> Any:
    return engine.get(engine.call(handle, method, *args)[0])


def wait_until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_reply(role: Handle[Any]) -> bool:
    """Whether part of a reply is there; takes none of it in."""
    return bool(select.select([role.target.line], [], [], 0.0)[0])


def gone(*pids: int) -> bool:
    def lives(pid: int) -> bool:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() != "zombie"
        return False

    return not any(map(lives, pids))


def run_script(text: str, make_engine: str = MAKE_ENGINE, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Runs Python code that is no module and has no guard."""
    environment = {**os.environ, "PYTHONPATH": import_path(), **kwargs.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-c", make_engine + text],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        **kwargs,
    )


def test_large_arrays_are_read_only_and_not_copied(engine: ProcessEngine, echo: Handle[Echo]) -> None:
    array = ask(engine, echo, Echo.give, np.arange(1_000_000))
    assert not array.flags.writeable
    assert not array.flags.owndata


def test_results_that_nobody_holds_any_more_are_let_go(engine: ProcessEngine, echo: Handle[Echo]) -> None:
    held = engine.call(echo, Echo.give, np.zeros(3))[0]
    dropped = weakref.ref(engine.call(echo, Echo.give, np.zeros(1 << 20))[0])
    engine.get(engine.call(echo, Echo.give, 1)[0])
    assert dropped() is None
    assert engine.wait([held], 60.0) == [held]


def test_a_role_that_dies_in_the_middle_of_a_reply_has_died(
    engine: ProcessEngine, echo: Handle[Echo]
) -> None:
    pid = ask(engine, echo, Echo.pid)
    (whole,) = engine.call(echo, Echo.zeros, 20_000_000)
    # The reply has begun and cannot end, because nobody reads it.
    wait_until(lambda: has_reply(echo))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RoleDied, match="SIGKILL"):
        engine.get(whole)


def test_a_role_that_dies_while_it_receives_has_died(engine: ProcessEngine, echo: Handle[Echo]) -> None:
    pid = ask(engine, echo, Echo.pid)
    os.kill(pid, signal.SIGSTOP)
    (never,) = engine.call(echo, Echo.give, b"x" * 20_000_000)
    assert engine.wait([never], 0.05) == []
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RoleDied, match="echo: its process was ended by SIGKILL"):
        engine.get(never)


def test_a_frozen_role_holds_nobody_up_and_is_ended(engine: ProcessEngine, echo: Handle[Echo]) -> None:
    counter = engine.spawn("counter", Counter, need=NEED)
    pid = ask(engine, echo, Echo.pid)
    os.kill(pid, signal.SIGSTOP)
    stuck = [engine.call(echo, Echo.give, np.zeros(1_000_000))[0] for _ in range(20)]
    for n in range(1, 21):
        assert ask(engine, counter, Counter.add, 1) == n
    assert engine.wait(stuck, 0.0) == []
    engine.kill(echo)
    with pytest.raises(RoleDied):
        engine.get(stuck[0])
    wait_until(lambda: gone(pid))


def test_a_role_that_dies_at_birth_says_how(engine: ProcessEngine) -> None:
    handle = engine.spawn("builder", DiesAtBirth, need=NEED)
    with pytest.raises(RoleDied, match="builder: its process has ended with exit status 7"):
        ask(engine, handle, Echo.pid)


def test_a_role_whose_code_exits_has_died(engine: ProcessEngine, echo: Handle[Echo]) -> None:
    with pytest.raises(RoleDied, match="exit status 1"):
        ask(engine, echo, Echo.leave)


def test_what_a_role_has_started_ends_with_it(engine: ProcessEngine, echo: Handle[Echo]) -> None:
    killed, closed = ask(engine, echo, Echo.start_daemon), None
    engine.kill(echo)
    wait_until(lambda: gone(killed))
    other = engine.spawn("other", Echo, need=NEED)
    closed, pid = ask(engine, other, Echo.start_daemon), ask(engine, other, Echo.pid)
    # An orphan: its role is dead already when the engine ends.
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RoleDied):
        ask(engine, other, Echo.pid)
    engine.close()
    # Nobody can wait for an orphan's death but its new parent: the kernel ends it a moment after the signal.
    wait_until(lambda: gone(closed, pid))


def test_another_process_forks_after_one_was_killed(engine: ProcessEngine, echo: Handle[Echo]) -> None:
    pid = ask(engine, echo, Echo.pid)
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    with pytest.raises(RoleDied):
        wait_until(lambda: ask(engine, echo, Echo.pid) != pid)
    wait_until(lambda: gone(pid))
    assert ask(engine, engine.spawn("echo", Echo, need=NEED), Echo.give, 5) == 5


def test_roles_draw_different_random_numbers(engine: ProcessEngine) -> None:
    roles = [engine.spawn(f"actor {n}", Echo, need=NEED) for n in range(4)]
    assert len({ask(engine, role, Echo.draws) for role in roles}) == 4


def test_a_gpu_belongs_to_one_role_at_a_time(engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert engine.gpus == 2.0
    names = ("CUDA_VISIBLE_DEVICES",)
    first, second = (engine.spawn(f"learner {n}", Echo, need=Need(gpus=1.0)) for n in range(2))
    assert [ask(engine, role, Echo.environment, *names) for role in (first, second)] == ["3", "5"]
    engine.kill(first)
    third = engine.spawn("learner 2", Echo, need=Need(gpus=1.0))
    assert ask(engine, third, Echo.environment, *names) == "3"


def test_roles_leave_signals_to_the_driver(engine: ProcessEngine, echo: Handle[Echo]) -> None:
    pid = ask(engine, echo, Echo.pid)
    daemon = ask(engine, echo, Echo.start_daemon)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(psutil.Process(pid).ppid(), number)
        os.kill(pid, number)
    assert ask(engine, echo, Echo.give, 1) == 1
    # What a role starts ends when it is told to.
    os.kill(daemon, signal.SIGTERM)
    wait_until(lambda: gone(daemon))


def test_sixty_four_roles_call_each_other(engine: ProcessEngine) -> None:
    shard = engine.spawn("shard 0", Counter, need=NEED)
    actors = [engine.spawn(f"actor {n}", Asker, engine.calls, shard, need=NEED) for n in range(63)]
    refs = [engine.call(actor, Asker.ask, Counter.add, 1)[0] for actor in actors]
    assert sorted(engine.get(ref) for ref in refs) == list(range(1, 64))


@pytest.mark.slow
def test_nothing_grows_over_100_000_calls(engine: ProcessEngine, echo: Handle[Echo]) -> None:
    array, large = np.zeros(100), np.zeros(100_000)

    def calls(rounds: int) -> None:
        for _ in range(rounds):
            refs = [engine.call(echo, Echo.give, array)[0] for _ in range(99)]
            refs += engine.call(echo, Echo.give, large)
            for ref in refs:
                engine.get(ref)

    def memory_files() -> int:
        opened = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        return len([path for path in opened if path.startswith("/memfd:qfleet")])

    def used() -> tuple[int, int, float, float]:
        here, there = psutil.Process(), psutil.Process(pid)
        return (
            len(os.listdir("/proc/self/fd")) - memory_files(),
            ask(engine, echo, Echo.descriptors),
            here.memory_info().rss / 1e6,
            there.memory_info().rss / 1e6,
        )

    pid = ask(engine, echo, Echo.pid)
    calls(50)
    before = used()
    calls(950)
    after = used()
    assert after[:2] == before[:2]
    # One large call is under way at a time, but its memory may still be mapped when the next one is sent;
    # a sender keeps eight files at most.
    assert memory_files() <= 8
    assert after[2] < before[2] + 10.0
    assert after[3] < before[3] + 10.0


def test_fork_servers_that_are_forked_keep_nothing_of_the_driver() -> None:
    text = (
        "role = engine.spawn('echo', Echo, need=Need(torch=True))\n"
        "print(ask(role, Echo.descriptors), ask(role, Echo.environment, 'OMP_NUM_THREADS'))\n"
        "engine.close()\n"
    )
    driver = (
        "import os, signal, socket\n"
        "kept = [open(os.devnull) for _ in range(9)]\n"
        "signal.signal(signal.SIGTERM, print)\n"
        "os.environ['OMP_NUM_THREADS'] = '3'\n"
    )
    started, forked = run_script(text), run_script(text, driver + FORK_ENGINE)
    assert (forked.stdout, forked.stderr) == (started.stdout, "")
    assert started.stdout.endswith(" 1\n")


@pytest.mark.parametrize("make_engine", [MAKE_ENGINE, FORK_ENGINE], ids=["started", "forked"])
def test_everything_ends_with_a_driver_that_is_killed(make_engine: str, tmp_path: Path) -> None:
    code = make_engine + (
        "forked = os.fork()\n"
        "if not forked:\n"
        "    time.sleep(1000)\n"
        "roles = [engine.spawn(f'actor {n}', Echo, need=Need(torch=n % 2 == 0)) for n in range(4)]\n"
        "pids = [ask(role, Echo.pid) for role in roles]\n"
        "print(*pids, ask(roles[0], Echo.start_daemon), forked, flush=True)\n"
        "ask(roles[0], Echo.give, time.sleep(1000))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": import_path(), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout is not None
        pids = [int(pid) for pid in driver.stdout.readline().split()]
        *pids, forked = pids
        assert len(pids) == 5
        servers = [process.pid for process in psutil.Process(driver.pid).children() if process.pid != forked]
        driver.kill()
    wait_until(lambda: gone(*pids, *servers))
    # This one holds every connection of the driver, and keeps nothing alive.
    os.kill(forked, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_roles_compute_although_the_driver_has_used_threads_of_torch() -> None:
    run = run_script(
        "import torch\n"
        "torch.set_num_threads(4)\n"
        "(torch.ones(500, 500) @ torch.ones(500, 500)).sum()\n"
        "role = engine.spawn('learner', Echo, need=Need(torch=True))\n"
        "print(ask(role, Echo.product))\n"
        "engine.close()\n"
    )
    assert (run.stdout, run.stderr) == (f"{300.0**3}\n", "")


def test_a_script_on_standard_input_needs_no_guard() -> None:
    text = "role = engine.spawn('echo', Echo, need=Need())\nprint(ask(role, Echo.give, 7))\nengine.close()\n"
    run = subprocess.run(
        [sys.executable, "-"],
        input=MAKE_ENGINE + text,
        env={**os.environ, "PYTHONPATH": import_path()},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (run.stdout, run.stderr) == ("7\n", "")


def test_sixty_four_roles_fit_into_256_open_files() -> None:
    run = run_script(
        "shard = engine.spawn('shard', Counter, need=Need())\n"
        "roles = [engine.spawn(f'actor {n}', Echo, need=Need()) for n in range(64)]\n"
        "import numpy as np\n"
        "print(sum(ask(role, Echo.give, np.ones(100_000)).sum() for role in roles))\n"
        "engine.close()\n",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
    )
    assert (run.stdout, run.stderr) == ("6400000.0\n", "")


def test_the_limit_of_open_files_is_raised_and_put_back() -> None:
    run = run_script(
        "import resource\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "engine.close()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 900)),
    )
    assert (run.stdout, run.stderr) == ("900\n128\n", "")


def test_no_room_for_descriptors_fails_the_call_alone(engine: ProcessEngine, echo: Handle[Echo]) -> None:
    (large,) = engine.call(echo, Echo.give, np.zeros(1_000_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wait_until(lambda: has_reply(echo))
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(RoleError, match=r"too many open files: raise the limit with ulimit -n"):
            engine.get(large)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ask(engine, echo, Echo.give, 1) == 1


@pytest.mark.parametrize("folder", ["/nonexistent", "/proc"])
def test_temporary_folders_are_not_used(folder: str) -> None:
    text = "role = engine.spawn('echo', Echo, need=Need())\nprint(ask(role, Echo.give, 7))\nengine.close()\n"
    run = run_script(text, env={"TMPDIR": folder})
    assert (run.stdout, run.stderr) == ("7\n", "")


def test_calls_go_on_while_threads_of_the_driver_work(engine: ProcessEngine, echo: Handle[Echo]) -> None:
    stop = threading.Event()
    busy = threading.Thread(target=lambda: [sum(range(1000)) for _ in iter(stop.is_set, True)])
    busy.start()
    try:
        assert [ask(engine, echo, Echo.give, n) for n in range(50)] == list(range(50))
    finally:
        stop.set()
        busy.join()
