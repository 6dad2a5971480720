"""A GPU: updates a second against a bare PyTorch loop, frames a second of acting, and whether all ways agree.

Run as `python -m benchmarks.gpu [--device cuda] [--seconds 2]`; with the defaults it should take six minutes
on a machine with one GPU. Both sides of the updates get minibatches from the host's memory, at batches of 32,
256 and 512, with the Nature and the IMPALA network; the learner's ways are eager, compiled (learner.compile),
recorded (learner.capture) and bfloat16. They take turns with the bare loop, which is eager, in TF32 as they
are. Acting is the network's forward pass on the device, from and to the host's memory. Agreement is the
largest difference between the TD errors of a way and of the eager one, over the same ten updates.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.processor import processor
from benchmarks.update_step import ATARI, BareLoop, Case, Minibatches, random_minibatch
from learner.batch import to_batch
from learner.config import LearnerConfig
from learner.loop import Learner
from learner.networks.configured import flat_network
from learner.networks.flat import FlatNetwork
from learner.update import UpdateStep, prepare_device

NETWORKS = ("nature_cnn", "impala_cnn")
BATCHES = (32, 256, 512)
ACTING_BATCHES = (16, 128, 1_024)
WAYS: Mapping[str, Mapping[str, Any]] = {
    "eager": {},
    "compiled": {"compile": True},
    "recorded": {"capture": True},
    "bfloat16": {"precision": "bfloat16"},
}
TURNS = 3
COMPARED_UPDATES = 10


def config_of(network: str, batch_size: int, device: str, way: str) -> LearnerConfig:
    """A double DQN of the network, learning in this way."""
    plain = LearnerConfig(network=network, batch_size=batch_size, double=True, device=device)
    return replace(plain, **WAYS[way])


def rate(learn: Callable[[int], object], wait: Callable[[], None], seconds: float) -> float:
    """Calls a second of `learn`, which takes how many, over about so many seconds."""
    learn(3)
    wait()
    began = perf_counter()
    learn(3)
    wait()
    count = max(3, round(3 * seconds / (perf_counter() - began)))
    began = perf_counter()
    learn(count)
    wait()
    return count / (perf_counter() - began)


def print_updates(device: str, seconds: float, wait: Callable[[], None]) -> None:
    """A line for each network and batch: the bare loop's updates a second, and each way's share of it."""
    print(f"{'updates/s':22s} {'bare':>9s} " + " ".join(f"{way:>9s}" for way in WAYS) + "   (bare = 1)")
    for network in NETWORKS:
        for batch_size in BATCHES:
            case = Case(network, ATARI, config_of(network, batch_size, device, "eager"), 0)
            source = Minibatches(case)
            bare = BareLoop(case, source.held, device)
            learners = {
                way: Learner(config_of(network, batch_size, device, way), ATARI, source, seed=0, threads=1)
                for way in WAYS
            }
            turns = [
                (
                    rate(bare.learn, wait, seconds),
                    {way: rate(one.learn, wait, seconds) for way, one in learners.items()},
                )
                for _ in range(TURNS)
            ]
            shares = [median(ways[way] / alone for alone, ways in turns) for way in WAYS]
            alone = median(alone for alone, _ in turns)
            cells = " ".join(f"{share:9.2f}" for share in shares)
            print(f"{network:12s} batch {batch_size:3d} {alone:9.1f} {cells}", flush=True)


def print_acting(device: str, seconds: float, wait: Callable[[], None]) -> None:
    """A line for each network: frames a second at each batch."""
    print(
        f"\n{'acting, frames/s':22s} " + " ".join(f"{batch:>9d}" for batch in ACTING_BATCHES) + "   at once"
    )
    for network in NETWORKS:
        acting = flat_network(ATARI, config_of(network, 32, device, "eager"), torch.device(device))
        rates = []
        for batch in ACTING_BATCHES:
            frames = torch.zeros(batch, *ATARI.observation_shape, dtype=torch.uint8)

            def act(count: int, acting: FlatNetwork = acting, frames: torch.Tensor = frames) -> None:
                for _ in range(count):
                    acting.evaluate(frames.to(device)).argmax(1).cpu()

            rates.append(batch * rate(act, wait, seconds))
        print(f"{network:22s} " + " ".join(f"{one:9,.0f}" for one in rates), flush=True)


def largest_difference(network: str, way: str, device: str) -> tuple[float, float]:
    """The largest one between TD errors of a way and of the eager one, and the mean of these TD errors."""
    case = Case(network, ATARI, config_of(network, 32, device, way), 0)
    rng = np.random.default_rng(0)
    steps = [UpdateStep(ATARI, config_of(network, 32, device, one), seed=0) for one in ("eager", way)]
    difference, size = 0.0, 0.0
    for _ in range(COMPARED_UPDATES):
        minibatch = random_minibatch(case, rng)
        eager, other = (
            step.finish(step.start(to_batch(minibatch, ATARI.stack, step.device))) for step in steps
        )
        assert isinstance(eager, np.ndarray)
        assert isinstance(other, np.ndarray)
        difference, size = max(difference, float(np.abs(eager - other).max())), float(eager.mean())
    return difference, size


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of each timed piece; default: %(default)g"
    )
    options = parser.parse_args(arguments)
    device = prepare_device(options.device)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else "no GPU: the processor stands for it"
    print(f"{name}; torch {torch.__version__}; {processor()}", flush=True)

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize(device)

    print_updates(options.device, options.seconds, wait)
    print_acting(options.device, options.seconds, wait)
    print("\nlargest difference of TD errors from eager updates, and their mean")
    for network in NETWORKS:
        for way in list(WAYS)[1:]:
            difference, size = largest_difference(network, way, options.device)
            print(f"{network:12s} {way:9s} {difference:9.2g} {size:9.2g}", flush=True)


if __name__ == "__main__":
    main()
