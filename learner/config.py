"""Settings of the learner (the section `learner`), and what follows from them for a network.

Owns names, defaults and checks; must not import torch, so that a driver can read it cheaply.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from replay_service.block import OBSERVATION, FrameField
from replay_service.checks import above_zero, at_least, require, within

NATURE_CNN_SMALLEST_IMAGE = 36
"""Smallest side of an image, in pixels, that the Nature CNN's convolutions do not shrink to nothing."""

IMAGE_NETWORKS = ("nature_cnn", "impala_cnn", "minatar_cnn")
"""Networks that begin with convolutions."""

NETWORKS = ("auto", "mlp", *IMAGE_NETWORKS, "table")
"""Names that `learner.network` may have, besides an import path."""

LEARNING_RATE = 5e-4
"""Learning rate, if nothing says otherwise."""

TARGET_UPDATE_UPDATES = 200
"""Updates between two copies to the target network, if neither they nor env steps are given."""


DenseProducts = Literal["auto", "onednn", "blas"]
"""Which library computes dense products on the CPU: learner/networks/products.py."""

ConvolutionLayout = Literal["auto", "channels_last", "channels_first"]
"""The order in memory of the images that convolutions take: learner/networks/torsos.py."""


@dataclass(frozen=True)
class NetworkSpec:
    """The observations and the number of actions A that a network must fit.

    observation_shape is [*frame] where stack is 1, else [stack, *frame]; num_states is set for Discrete
    observations, whose observation_shape is (). Where an observation consists of several arrays, `parts` has
    the name, dtype and shape (with the stack) of each; observation_shape is then (), the dtype "|V", and a
    network takes a dict of tensors by name.

    pixels: names of the arrays whose values go from 0 to 255; networks divide them by 255. image_layouts:
    name of each array with the axes of an image -> their order, "HW", "HWC", "CHW" or "unknown". An array
    alone has the name "observation".
    """

    observation_shape: tuple[int, ...]
    observation_dtype: str
    num_states: int | None
    num_actions: int
    stack: int
    parts: tuple[FrameField, ...] = ()
    pixels: tuple[str, ...] = ()
    image_layouts: Mapping[str, str] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, NetworkSpec]:
        """A spec for each array of an observation: the parts by name, or "observation" alone."""
        if not self.parts:
            return {OBSERVATION: self}
        return {part.name: self._alone(part) for part in self.parts}

    def _alone(self, part: FrameField) -> NetworkSpec:
        """A spec for one part as if it were the whole observation."""
        layout = self.image_layouts.get(part.name)
        return replace(
            self,
            observation_shape=part.shape,
            observation_dtype=part.dtype,
            parts=(),
            pixels=(OBSERVATION,) if part.name in self.pixels else (),
            image_layouts={} if layout is None else {OBSERVATION: layout},
        )

    @property
    def is_pixels(self) -> bool:
        """Whether the one array of an observation holds values from 0 to 255."""
        return OBSERVATION in self.pixels

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """observation_shape without the stack."""
        return self.observation_shape[1:] if self.stack > 1 else self.observation_shape


@dataclass(frozen=True)
class LearnerConfig:
    """The section `learner`: network, loss and optimizer.

    cluster/settings/catalog.py says what each means.
    A factory as network is a callable (spec, config) that returns a torch module [B, *observation_shape] ->
    [B, A], or [B, A, num_atoms] for a head of a distribution. docs/architecture.md, "The family", has the
    equations of heads, losses and switches with their sources.
    """

    network: str = "auto"
    hidden_sizes: tuple[int, ...] = (128, 128)
    layer_norm: bool = False
    image_hidden_size: int | None = None
    impala_width: int = 1
    pool_size: int | None = None
    spectral_norm: bool = False
    normalize_observations: bool = False
    head: Literal["q", "c51", "qr", "iqn"] = "q"
    num_atoms: int = 51
    iqn_cosines: int = 64
    iqn_quantiles: int = 8
    iqn_target_quantiles: int = 8
    iqn_acting_quantiles: int = 32
    value_range: tuple[float, float] = (-10.0, 10.0)
    dueling: bool = False
    noisy: bool = False
    loss: Literal["squared", "huber"] = "squared"
    huber_delta: float = 1.0
    double: bool = False
    munchausen: bool = False
    munchausen_alpha: float = 0.9
    munchausen_temperature: float = 0.03
    munchausen_clip: float = -1.0
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = 0.0
    learning_rate: float | None = None
    learning_rate_end: float = 0.0
    learning_rate_decay_updates: int | None = None
    adam_epsilon: float = 1e-8
    max_grad_norm: float | None = 10.0
    max_skipped_updates: int = 10
    batch_size: int = 64
    num_learners: int = 1
    target_update_updates: int | None = None
    target_update_env_steps: int | None = None
    target_polyak: float | None = None
    updates_per_chunk: int | None = None
    device: str = "auto"
    threads: int | None = None
    dense_products: DenseProducts = "auto"
    convolution_layout: ConvolutionLayout = "auto"
    initial_weights: str | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    capture: bool = False

    def __post_init__(self) -> None:
        require(
            self.network in NETWORKS or is_import_path(self.network),
            "learner.network",
            repr(self.network),
            f"give one of {', '.join(NETWORKS)}, or an import path package.module:factory",
        )
        at_least(2, "learner", self, "num_atoms", cure="a distribution needs at least 2")
        low, high = self.value_range
        require(low < high, "learner.value_range", f"[{low:g}, {high:g}]", "give the lower value first")
        require(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            "learner.device",
            self.device,
            "give auto, cpu, cuda or cuda:N",
        )
        require(
            min(self.hidden_sizes, default=0) >= 1,
            "learner.hidden_sizes",
            list(self.hidden_sizes),
            "give one or more sizes of at least 1",
        )
        require(
            not self.munchausen or (self.head != "c51" and not self.double),
            "learner.munchausen",
            "true",
            f"it takes heads q, qr and iqn (this is {self.head}), and its soft policy makes double useless "
            f"(this is {self.double}); give learner.head=qr and learner.double=false",
        )
        within(0.0, 1.0, "learner", self, "munchausen_alpha", cure="give a factor in [0, 1]")
        above_zero("learner", self, "munchausen_temperature")
        within(-math.inf, 0.0, "learner", self, "munchausen_clip", cure="log-probabilities are at most 0")
        above_zero("learner", self, "huber_delta", "learning_rate", "adam_epsilon")
        at_least(0, "learner", self, "weight_decay")
        require(
            self.weight_decay == 0.0 or self.optimizer == "adamw",
            "learner.weight_decay",
            self.weight_decay,
            f"only adamw decays weights, and learner.optimizer is {self.optimizer}; give adamw, or no decay",
        )
        require(
            self.weight_decay == 0.0 or self.first_rate * self.weight_decay < 1.0,
            "learner.weight_decay",
            self.weight_decay,
            f"at learner.learning_rate = {self.first_rate} an update would leave nothing of the weights; "
            "give less",
        )
        rates = f"give a rate in [0, learner.learning_rate = {self.first_rate}]"
        within(0.0, self.first_rate, "learner", self, "learning_rate_end", cure=rates)
        above_zero("learner", self, "max_grad_norm", cure="give a norm above 0, or null for no clipping")
        share = "give a share in (0, 1], or null"
        above_zero("learner", self, "target_polyak", cure=share)
        within(0.0, 1.0, "learner", self, "target_polyak", cure=share)
        quantiles = ("iqn_cosines", "iqn_quantiles", "iqn_target_quantiles", "iqn_acting_quantiles")
        at_least(1, "learner", self, *quantiles)
        at_least(1, "learner", self, "image_hidden_size", "impala_width", "pool_size", "threads")
        require(
            self.target_update_updates is None or self.target_update_env_steps is None,
            "learner.target_update_env_steps",
            self.target_update_env_steps,
            f"learner.target_update_updates is {self.target_update_updates}, too; give one, the other null",
        )
        require(
            self.target_polyak is None or self.target_update_env_steps is None,
            "learner.target_update_env_steps",
            self.target_update_env_steps,
            f"learner.target_polyak = {self.target_polyak} moves the target network instead; give one",
        )
        periods = (
            "target_update_updates",
            "target_update_env_steps",
            "updates_per_chunk",
            "learning_rate_decay_updates",
        )
        at_least(1, "learner", self, "batch_size", "max_skipped_updates", *periods)
        each = (
            f"each learns from some of the learner.batch_size = {self.batch_size} transitions of a minibatch"
        )
        within(1, self.batch_size, "learner", self, "num_learners", cure=each)

    @property
    def first_rate(self) -> float:
        """The learning rate of the first update."""
        return self.learning_rate or LEARNING_RATE


def part_sizes(batch_size: int, num_learners: int) -> tuple[int, ...]:
    """How many transitions of a minibatch each rank learns from; the numbers differ by at most 1."""
    each, rest = divmod(batch_size, num_learners)
    return tuple(each + (rank < rest) for rank in range(num_learners))


def target_period(config: LearnerConfig, samples_per_insert: float) -> int:
    """Updates between two copies to the target network: as given, or what target_update_env_steps take.

    Each env step inserts a transition, which is sampled samples_per_insert times, batch_size in each update.
    """
    if config.target_update_env_steps is None:
        return config.target_update_updates or TARGET_UPDATE_UPDATES
    return max(1, round(config.target_update_env_steps * samples_per_insert / config.batch_size))


class ImageShape(NamedTuple):
    """One image observation: channels counts all frames of all stacks.

    channels_last gives the order of each frame's axes: [..., H, W, C], else [H, W] or [..., C, H, W].
    pixels: whether values go from 0 to 255.
    """

    channels: int
    height: int
    width: int
    channels_last: bool
    pixels: bool


def image_shape(spec: NetworkSpec) -> ImageShape | None:
    """The shape of an observation of one array as an image; None if it is none, or its layout is unknown.

    A frame with four axes is a stack of images that the environment itself makes.
    """
    layout = spec.image_layouts.get(OBSERVATION)
    match layout:
        case "HW":
            stack, (height, width), channels = [], spec.frame_shape, 1
        case "HWC":
            *stack, height, width, channels = spec.frame_shape
        case "CHW":
            *stack, channels, height, width = spec.frame_shape
        case _:
            return None
    channels *= spec.stack * math.prod(stack)
    return ImageShape(channels, height, width, channels_last=layout == "HWC", pixels=spec.is_pixels)


def feature_map(network: str, image: ImageShape) -> tuple[int, int]:
    """Height and width of the feature maps that the convolutions of an image network make of an image."""
    height, width = image.height, image.width
    match network:
        case "nature_cnn":
            return ((height - 8) // 4 - 3) // 2 - 1, ((width - 8) // 4 - 3) // 2 - 1
        case "minatar_cnn":
            return height - 2, width - 2
        case _:
            return -(-height // 8), -(-width // 8)


def resolve_network(spec: NetworkSpec, config: LearnerConfig) -> str:
    """The network that config.network names; "auto" is a table for Discrete observations, the Nature CNN
    where there are images of at least 36 x 36, else an MLP. Raises ValueError where the named one does not
    fit, and where it depends on the order of an image's axes, which is unknown."""
    arrays = spec.arrays.values()
    large_enough = any(map(is_large_image, arrays))
    discrete = spec.num_states is not None
    shapes = ", ".join(f"{array.observation_dtype} {list(array.observation_shape)}" for array in arrays)
    seen = f"these are {shapes} (stack {spec.stack})"
    _refuse_if(
        discrete and spec.stack > 1,
        f"Discrete observations cannot be stacked, but env.stack is {spec.stack}; give 1",
    )
    network = config.network
    for array in arrays:
        _refuse_if(
            _needs_layout(array, network),
            f"observations of shape {list(array.frame_shape)} are images, but which axis holds the channels? "
            "Set env.image_layout=HWC (channels last) or CHW (channels first), or learner.network=mlp",
        )
    if network == "auto":
        network = "table" if discrete else "nature_cnn" if large_enough else "mlp"
    _refuse_if(
        network == "table" and not discrete,
        f"learner.network is table, which needs Discrete observations; {seen}",
    )
    _refuse_if(
        network == "nature_cnn" and not large_enough,
        "learner.network is nature_cnn, which needs images of at least "
        f"{NATURE_CNN_SMALLEST_IMAGE} x {NATURE_CNN_SMALLEST_IMAGE} pixels; {seen}",
    )
    _refuse_if(
        network in ("impala_cnn", "minatar_cnn") and not any(map(image_shape, arrays)),
        f"learner.network is {network}, which needs images; {seen}",
    )
    _refuse_if(
        network == "mlp" and discrete,
        "learner.network is mlp, but Discrete observations have no magnitude; give table",
    )
    for switch in ("dueling", "noisy", "layer_norm"):
        _refuse_if(
            getattr(config, switch) and (network == "table" or is_import_path(network)),
            f"learner.{switch} is true, which only the MLP and the CNNs offer; learner.network is {network}",
        )
    _refuse_if(
        config.head == "iqn" and (network == "table" or is_import_path(network)),
        f"learner.head is iqn, which only the MLP and the CNNs offer; learner.network is {network}; give qr",
    )
    for switch, wanted in (
        ("impala_width", config.impala_width > 1),
        ("spectral_norm", config.spectral_norm),
    ):
        _refuse_if(
            wanted and network != "impala_cnn",
            f"learner.{switch} is {getattr(config, switch)}, which only impala_cnn offers; "
            f"learner.network is {network}",
        )
    _refuse_if(
        config.image_hidden_size is not None and network not in IMAGE_NETWORKS,
        f"learner.image_hidden_size is {config.image_hidden_size}, which only {', '.join(IMAGE_NETWORKS)} "
        f"have; learner.network is {network}; give learner.hidden_sizes",
    )
    _refuse_if(
        config.convolution_layout != "auto" and network not in IMAGE_NETWORKS,
        f"learner.convolution_layout is {config.convolution_layout}, which only {', '.join(IMAGE_NETWORKS)} "
        f"have; learner.network is {network}; give auto",
    )
    if config.pool_size is not None:
        _check_pool_size(network, config.pool_size, [convolved(network, array) for array in arrays])
    _refuse_if(
        config.normalize_observations and not any(map(is_normalizable, arrays)),
        "learner.normalize_observations is true, which needs numbers other than pixels, flags and states; "
        f"{seen}; give false",
    )
    return network


def convolved(network: str, spec: NetworkSpec) -> ImageShape | None:
    """The image that the network's convolutions see of an observation of one array; None if it is none."""
    fits = network in IMAGE_NETWORKS and (network != "nature_cnn" or is_large_image(spec))
    return image_shape(spec) if fits else None


def _check_pool_size(network: str, pool_size: int, images: Sequence[ImageShape | None]) -> None:
    """Refuses pooling to more pixels than a feature map has: it would repeat them."""
    sides = [min(feature_map(network, image)) for image in images if image is not None]
    _refuse_if(
        not sides,
        f"learner.pool_size is {pool_size}, which only {', '.join(IMAGE_NETWORKS)} offer; "
        f"learner.network is {network}; give null",
    )
    _refuse_if(
        pool_size > min(sides),
        f"learner.pool_size is {pool_size}, but the shorter side of {network}'s feature maps has only "
        f"{min(sides)} pixels here; give at most {min(sides)}, or null",
    )


def is_large_image(spec: NetworkSpec) -> bool:
    """Whether an observation of one array is an image large enough for the Nature CNN."""
    image = image_shape(spec)
    return image is not None and min(image.height, image.width) >= NATURE_CNN_SMALLEST_IMAGE


def is_normalizable(spec: NetworkSpec) -> bool:
    """Whether an observation of one array can be normalized: it holds no pixels, flags or state numbers."""
    return spec.observation_dtype in ("<f4", "float32", "|u1", "uint8") and not spec.is_pixels


def _needs_layout(spec: NetworkSpec, network: str) -> bool:
    """Whether a network depends on the order of the axes of one array, which is unknown."""
    if spec.image_layouts.get(OBSERVATION) != "unknown":
        return False
    # Some order of the axes makes it a large image.
    large = sorted(spec.frame_shape[-3:])[1] >= NATURE_CNN_SMALLEST_IMAGE
    return network in ("impala_cnn", "minatar_cnn") or (network in ("auto", "nature_cnn") and large)


def is_import_path(network: str) -> bool:
    """Whether it has the form package.module:factory."""
    module, colon, factory = network.partition(":")
    return bool(colon) and factory.isidentifier() and all(map(str.isidentifier, module.split(".")))


def is_plain(config: LearnerConfig) -> bool:
    """Whether the network computes one Q-value for each action, by nothing but linear layers and ReLU."""
    return config.head == "q" and not (config.dueling or config.noisy or config.layer_norm)


def acts_in_numpy(spec: NetworkSpec, config: LearnerConfig) -> bool:
    """Whether actors need no torch: for plain MLPs and tables of one array. config.network is resolved."""
    return config.network in ("mlp", "table") and is_plain(config) and not spec.parts


def output_shape(spec: NetworkSpec, config: LearnerConfig) -> tuple[int, ...]:
    """A network's outputs for one observation, where it acts: [A], or [A, N] for a distributional head."""
    match config.head:
        case "q":
            return (spec.num_actions,)
        case "iqn":
            return (spec.num_actions, config.iqn_acting_quantiles)
        case _:
            return (spec.num_actions, config.num_atoms)


def _refuse_if(wrong: bool, why: str) -> None:
    if wrong:
        raise ValueError(why)
