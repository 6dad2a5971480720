"""The configured network over one weight vector: whose passes it gets, in which precision, compiled or not.

Owns these choices; must not import optimizers, numpy or the replay service.
"""

from time import perf_counter

import torch
from torch import Tensor, nn

from learner.batch import Observations
from learner.config import LearnerConfig, NetworkSpec, is_import_path, output_shape
from learner.core import Note
from learner.networks.build import Mlp, build_network, zero_observations
from learner.networks.flat import FlatNetwork
from learner.networks.flat_minatar import FlatMinatar, has_passes_by_hand
from learner.networks.flat_mlp import FlatMlp
from learner.networks.streams import TorsoAndStreams


def flat_network(spec: NetworkSpec, config: LearnerConfig, device: torch.device) -> FlatNetwork:
    """The configured network over one weight vector; a plain MLP, and the plain network of MinAtar, get
    passes by hand, others use autograd."""
    network = _over_one_vector(spec, config, device)
    network.compute_as(config)
    return network


def _over_one_vector(spec: NetworkSpec, config: LearnerConfig, device: torch.device) -> FlatNetwork:
    network = build_network(spec, config)
    if config.precision == "bfloat16":
        return FlatNetwork(InBfloat16(network, device), device)
    # A user's own network may be derived from ours, or frozen in part.
    if is_import_path(config.network):
        return FlatNetwork(network, device)
    if isinstance(network, Mlp):
        return FlatMlp(network, device)
    if has_passes_by_hand(spec, config):
        assert isinstance(network, TorsoAndStreams)
        return FlatMinatar(network, output_shape(spec, config), device)
    return FlatNetwork(network, device)


class InBfloat16(nn.Module):
    """A network computed under autocast to bfloat16; its weights and outputs are float32."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self._network = network
        self._device_type = device.type

    def forward(self, observations: Observations, *fractions: Tensor) -> Tensor:
        """[B, *shape], or a dict of parts -> outputs, float32."""
        with torch.autocast(self._device_type, torch.bfloat16):
            outputs: Tensor = self._network(observations, *fractions)
        return outputs.float()


def compile_passes(
    online: FlatNetwork, target: FlatNetwork, spec: NetworkSpec, config: LearnerConfig
) -> Note:
    """Compiles the passes of both networks for learner.batch_size.

    Without a compiler, leaves them as they are. Returns a sentence about it for the run's user.
    """
    if isinstance(online, FlatMlp):
        return Note(
            "warning", "learner.compile changes nothing: the passes of a plain MLP are written by hand"
        )
    began = perf_counter()
    observations = zero_observations(spec, config.batch_size, online.weights.device)
    try:
        for network in (online, target):
            network.compile()
            network.evaluate(observations)
        online.backward(torch.zeros_like(online.forward(observations)))
    except RuntimeError as error:  # as are all errors of torch.compile
        for network in (online, target):
            network.uncompile()
        reason = str(error).strip().splitlines()[0]
        return Note(
            "warning", f"learner.compile is true, but torch.compile failed; going on without: {reason}"
        )
    return Note("info", f"the learner's passes were compiled in {perf_counter() - began:.1f} s")
