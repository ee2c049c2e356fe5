"""Images from a trained model: from a workdir, or from parameters at hand."""

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pom_jax import models
from pom_jax.data import read_manifest
from pom_jax.diffusion.guidance import Interval, check_guidance, choose_interval, guide
from pom_jax.diffusion.paths import Path as NoisePath
from pom_jax.diffusion.paths import make_path
from pom_jax.diffusion.samplers import Sampler, sample
from pom_jax.diffusion.schedules import shift_time, time_grid
from pom_jax.errors import InputError
from pom_jax.ops.mesh import BATCH_AXES
from pom_jax.sampling.decode import Decoder, load_decoder
from pom_jax.sampling.made_with import Say, made_with
from pom_jax.sampling.progress import Progress
from pom_jax.sampling.upscale import START, check_start, noised
from pom_jax.training import checkpoint
from pom_jax.training.objective import network
from pom_jax.training.preview import to_pixels

Labels = Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class _Program:
    """What the compiled sampler depends on, apart from the numbers it is given."""

    model: nn.Module
    path: NoisePath
    prediction: str
    null: int
    shape: tuple[int, ...]
    sampler: str | Sampler
    steps: int
    shift: float
    guided: bool
    interval: Interval
    schedule: str
    clip: float | None
    trajectory: bool
    start: float

    def __call__(
        self,
        params: Any,
        scale: jax.Array,
        seed: jax.Array,
        index: jax.Array,
        labels: jax.Array,
        low: jax.Array | None,
    ) -> Any:
        """x [B, H, W, C], or all its states [steps + 1, B, H, W, C].

        From the numbers of the images [B], their labels [B], and the images [B, h, w, C] to start at `start`
        from, if there are any.
        """
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(index)
        start, steps = jax.vmap(jax.random.split, out_axes=1)(keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, self.shape))(start)
        times = None
        if low is not None:
            times = shift_time(time_grid(self.steps, start=self.start), self.shift)
            noise = noised(self.path, low, noise, times[0])
        scale_or_off = scale if self.guided else 1.0
        drawn = sample(
            guide(network(self.model, params), labels, self.null, scale_or_off, self.interval, self.schedule),
            steps,
            noise,
            path=self.path,
            prediction=self.prediction,
            sampler=self.sampler,
            steps=self.steps,
            times=times,
            shift=self.shift,
            clip=self.clip,
            trajectory=self.trajectory,
        )
        return jnp.concatenate([noise[None], drawn[1]]) if self.trajectory else drawn


class Generator:
    """Draws images with one model and its parameters, the batch spread over all devices of a mesh.

    Args:
        config: of the run; reads model, diffusion, ema and sampling.
        model: the network, from `models.build(config.model, config.dtype)`.
        params: its parameters.
        step: how long they were trained.
        ema: which of the averages they are; None for those that were trained.
        classes: the name of each label; numbers by default.
        decoder: makes pixels of the latents that the model draws; None for a model of pixels.
        draws_pixels: whether the model itself draws pixels; by default where it has one or three channels and
            no decoder.
        mesh: where the parameters lie, whole or cut, of `training.sharding.make_mesh`: all its processes draw
            together, within `jax.set_mesh`, and each gets all images. By default the devices of this process,
            each of which is given all parameters.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: nn.Module,
        params: Any,
        *,
        step: int = 0,
        ema: int | None = None,
        classes: Sequence[str] | None = None,
        decoder: Decoder | None = None,
        draws_pixels: bool | None = None,
        mesh: Mesh | None = None,
    ):
        self.decoder = decoder
        usual = config.model.channels in (1, 3) and decoder is None
        self.draws_pixels = usual if draws_pixels is None else draws_pixels
        self.config, self.model, self.step, self.ema = config, model, step, ema
        self.classes = tuple(classes or map(str, range(config.model.num_classes)))
        self.mesh = make_mesh() if mesh is None else mesh
        axes = tuple(axis for axis in BATCH_AXES if axis in self.mesh.shape)
        self._batch_parts = math.prod(self.mesh.shape[axis] for axis in axes)
        self._batch_sharding = NamedSharding(self.mesh, PartitionSpec(axes))
        self._whole = NamedSharding(self.mesh, PartitionSpec())
        self.params = jax.device_put(params, self._whole) if mesh is None else params
        self._compiled: dict[tuple[_Program, int, tuple[int, ...] | None], Any] = {}

    def __repr__(self) -> str:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"Generator({self.config.name}, {parameters:,} parameters, {self.origin}, "
            f"{' x '.join(map(str, self.image_shape))}, {self.config.model.num_classes} classes)"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of what the model draws."""
        size = self.config.model.image_size
        return size, size, self.config.model.channels

    @property
    def origin(self) -> str:
        """Which parameters these are, for people."""
        return origin(self.config, self.step, self.ema)

    @property
    def makes_pixels(self) -> bool:
        """Whether pixels come out: the model draws them, or latents are decoded."""
        return self.draws_pixels or self.decoder is not None

    def check_pixels(self) -> None:
        """Raises an InputError for a model of latents without a decoder."""
        if not self.makes_pixels:
            raise InputError(
                f"this model draws latents of shape {self.image_shape}: give the autoencoder that makes "
                "pixels of them, --autoencoder=DIR, or load(..., autoencoder=DIR) in Python; or take them as "
                "they are, with sample.py --out=FILE.npz, or sample_array(...)"
            )

    def sample(self, labels: Labels, **settings: Any) -> np.ndarray:
        """Draws one image for each label.

        Args:
            labels: [N] class numbers.
            settings: of `sample_array`.

        Returns:
            [N, H, W, C] uint8 pixels; with trajectory=True [steps + 1, N, H, W, C], from noise to image.

        Raises:
            InputError: see `sample_array`; a model that draws latents, and no decoder.
        """
        self.check_pixels()
        return self.pixels(self.sample_array(labels, **settings), settings.get("progress"))

    def pixels(self, x: np.ndarray, progress: Progress | None = None) -> np.ndarray:
        """What `sample_array` draws, [..., H, W, C], as uint8 pixels, decoded if there is a decoder."""
        return to_pixels(x) if self.decoder is None else self.decoder(x, progress)

    def sample_array(
        self,
        labels: Labels,
        *,
        guidance: float | None = None,
        steps: int | None = None,
        sampler: str | Sampler | None = None,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 256,
        interval: Sequence[float] | None = None,
        schedule: str = "constant",
        clip: float | None = None,
        trajectory: bool = False,
        low: np.ndarray | None = None,
        upscale_start: float = START,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Draws one image (or latent) for each label, in the space of the model.

        Image i depends on the seed, i and its label, not on how many are drawn at once.

        Args:
            labels: [N] class numbers in [0, num_classes).
            guidance: scale in the usual sense, 1 = off, 0 = without labels; like `steps`, `sampler` and
                `interval` the run's own (config.sampling) by default.
            steps, sampler, clip, trajectory: see `diffusion.sample`.
            seed: of the noise.
            first: i of the first image; images of several calls are those of one.
            batch_size: images drawn at once, over all devices.
            interval, schedule: of the guidance, see `diffusion.guide`.
            low: [N, h, w, C] smaller images to start from, in the space of the model, see `sampling.upscale`.
            upscale_start: the time they are noised to, before the shift; nearer to 0 leaves more of them.
            progress: is told what happens.

        Returns:
            [N, H, W, C] float32, pixels in [-1, 1]; with trajectory=True [steps + 1, N, H, W, C].

        Raises:
            InputError: labels out of range, or a setting that cannot be used, before anything is compiled;
                images that are not finite.
        """
        labels = self._check_labels(labels)
        defaults = self.config.sampling
        scale = float(defaults.guidance if guidance is None else guidance)
        check_guidance(scale)
        check_start(upscale_start)
        check_numbers(batch_size, seed, first)
        if low is not None and len(low) != len(labels):
            raise InputError(
                f"there are {len(low)} smaller images for {len(labels)} labels: give one for each"
            )
        program = _Program(
            model=self.model,
            path=make_path(self.config.diffusion),
            prediction=self.config.diffusion.prediction,
            null=self.config.model.num_classes,
            shape=self.image_shape,
            sampler=defaults.sampler if sampler is None else sampler,
            steps=defaults.steps if steps is None else steps,
            shift=self.config.diffusion.shift,
            guided=scale != 1,
            interval=choose_interval(interval, defaults),
            schedule=schedule,
            clip=clip,
            trajectory=trajectory,
            start=upscale_start,
        )
        size = -(-min(batch_size, len(labels)) // self._batch_parts) * self._batch_parts
        shape = None if low is None else (size, *low.shape[1:])
        draw = self._compile(program, size, shape, progress)
        parts = []
        for start in range(0, len(labels), size):
            # The last batch is filled up with label 0, so that nothing compiles twice.
            index = (first + np.arange(start, start + size)).astype(np.uint32)
            given = np.pad(labels[start : start + size], (0, max(0, start + size - len(labels))))
            begin = None if low is None else low[np.minimum(index - first, len(low) - 1)]
            drawn = np.asarray(draw(self.params, *self._inputs(scale, seed, index, given, begin)))
            if not np.isfinite(drawn).all():
                raise InputError(
                    f"guidance {scale:g} and {program.steps} steps gave values that are not finite: lower "
                    "the guidance, take more steps or another sampler, or another checkpoint"
                )
            parts.append(drawn[..., : len(labels) - start, :, :, :])
            if progress is not None:
                progress.drawn(min(start + size, len(labels)), len(labels))
        return np.concatenate(parts, axis=1 if trajectory else 0)

    def _inputs(
        self, scale: float, seed: int, index: np.ndarray, labels: np.ndarray, low: np.ndarray | None
    ) -> tuple[Any, ...]:
        def put(x: Any, at: NamedSharding) -> jax.Array:
            return jax.make_array_from_callback(np.shape(x), at, lambda part: np.asarray(x)[part])

        whole, cut = self._whole, self._batch_sharding
        return (
            put(np.float32(scale), whole),
            put(np.uint32(seed), whole),
            put(index, cut),
            put(labels, cut),
            None if low is None else put(low, cut),
        )

    def _compile(
        self, program: _Program, size: int, shape: tuple[int, ...] | None, progress: Progress | None
    ) -> Any:
        """Of `size` images, which start from smaller ones of this shape."""
        if (program, size, shape) not in self._compiled:
            low = None if shape is None else np.zeros(shape, np.float32)
            inputs = self._inputs(1.0, 0, np.arange(size, dtype=np.uint32), np.zeros(size, np.int32), low)
            # Each of several processes reads all images, of which it may hold a part.
            drawn = None if self._whole.is_fully_addressable else self._whole
            lowered = jax.jit(program, out_shardings=drawn).lower(self.params, *inputs)
            if progress is not None:
                progress.compiling("sampler")
            began = time.perf_counter()
            self._compiled[program, size, shape] = lowered.compile()
            if progress is not None:
                progress.compiled(time.perf_counter() - began)
        return self._compiled[program, size, shape]

    def _check_labels(self, labels: Labels) -> np.ndarray:
        array = np.asarray(labels)
        count = self.config.model.num_classes
        if array.ndim != 1 or not len(array) or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"labels must be a row of at least one whole number; got {array.dtype} of shape {array.shape}"
            )
        if array.min() < 0 or array.max() >= count:
            raise InputError(
                f"labels run from {array.min()} to {array.max()}, but the model has {count} classes, "
                f"0 to {count - 1}"
            )
        return array.astype(np.int32)


def check_numbers(batch_size: int, seed: int, first: int) -> None:
    """Raises an InputError unless these can be."""
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    for name, number in {"seed": seed, "first": first}.items():
        if not 0 <= number < 2**32:
            raise InputError(f"{name} is {number}; it must be from 0 to {2**32 - 1}")


def load(
    workdir: str | Path,
    step: int | None = None,
    ema: int | None = 0,
    autoencoder: str | os.PathLike[str] | None = None,
    say: Say = print,
) -> Generator:
    """Reads a trained model from the workdir of train.py.

    Args:
        workdir: of the run.
        step: which checkpoint; the newest by default.
        ema: which of the averages of the parameters; None for the parameters themselves.
        autoencoder: folder of the autoencoder that the latents are of, in diffusers' format.
        say: is told if it is not known which autoencoder that is.

    Raises:
        InputError: not a workdir, no such checkpoint or average in it, no such autoencoder, or another than
            the one that the run's latents were made with.
    """
    config = checkpoint.load_config(workdir)
    if models.family(config.model) is models.Polymorpher:
        raise InputError(
            f"{workdir} is a run of a model of video and text: read it with pom_jax.load_video(...), or "
            'draw with python sample.py --workdir=... --prompt="..."'
        )
    check_ema(config, ema)
    model = models.build(config.model, config.dtype)
    encoding = made_with(config, (lambda _: None) if autoencoder is None else say)
    decoder = None if autoencoder is None else load_decoder(autoencoder, config.model.channels, encoding)
    whole = NamedSharding(make_mesh(), PartitionSpec())
    params, step = checkpoint.restore_params(workdir, step, ema, whole)
    classes = None
    try:
        found = read_manifest(config.data.dir).classes
        if len(found) == config.model.num_classes:  # a model of one class may learn from many
            classes = found
    except InputError:
        pass  # the data need not be here to sample; labels go by their numbers then
    pixels = None if encoding.get("autoencoder") is None else False
    return Generator(
        config, model, params, step=step, ema=ema, classes=classes, decoder=decoder, draws_pixels=pixels
    )


def origin(config: ConfigDict, step: int, ema: int | None) -> str:
    """Which parameters of a run are meant, for people: "EMA 0.999 of step 4500"."""
    return f"step {step} without EMA" if ema is None else f"EMA {config.ema.decays[ema]:g} of step {step}"


def check_ema(config: ConfigDict, ema: int | None) -> None:
    """Raises an InputError unless a run of this config keeps such an average; None always can be."""
    decays = tuple(config.ema.decays)
    if ema is not None and not 0 <= ema < len(decays):
        kept = ", ".join(f"--ema={i} (decay {decay:g})" for i, decay in enumerate(decays))
        averages = {0: "no average", 1: "one average, "}.get(len(decays), f"{len(decays)} averages, ")
        raise InputError(
            f"--ema={ema}: this run keeps {averages}{kept}; --ema=-1 (None in Python) is the parameters "
            "themselves"
        )


def make_mesh() -> jax.sharding.Mesh:
    """All devices of this process, along the batch."""
    devices = np.array(jax.local_devices())
    return jax.sharding.Mesh(devices, ("data",))
