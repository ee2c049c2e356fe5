"""What a batch is learned as: images; or clips, as films and, frame by frame, as pictures."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from pom_jax import models
from pom_jax.diffusion.frame_times import FrameTimes, check_frames, make_frame_times
from pom_jax.diffusion.losses import Losses, diffusion_loss, validation_loss
from pom_jax.diffusion.paths import Path, make_path, make_times
from pom_jax.diffusion.schedules import TimeSampling
from pom_jax.errors import InputError

PICTURES = FrameTimes("shared")  # clips of one frame


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a batch, as a function of the parameters.

    Attributes:
        model: called as model.apply({"params": p}, x [B, ...], t [B], labels [B] or a `Text`).
        path, prediction: what the network predicts, and on which path.
        times: how times are drawn; None for stratified ones, for validation.
        frames: what clips are learned as, and how the times of their frames are drawn; None for images.
        count: frames of patches of a clip.
    """

    model: nn.Module
    path: Path
    prediction: str
    times: TimeSampling | None
    frames: FrameTimes | None
    count: int

    def __call__(
        self, params: Any, key: jax.Array, x: jax.Array, given: Any, weights: jax.Array | None = None
    ) -> tuple[Losses, ...]:
        """The losses of images or clips; their `mean_loss` is what is trained on.

        Args:
            params: of the model.
            key: of all draws.
            x: [B, ...] clean images or clips.
            given: labels [B] or a `Text`.
            weights: [B] what each counts, for instance 0 where it only fills up the batch; all 1 by default.

        Returns:
            Losses [B] of images; or [B / film_every, takes F] of films ([B / film_every, 1] with shared
            times), and [B still_frames, 1] of stills if there are any. Each frame that is learned counts
            alike.
        """
        if self.frames is None:
            return (self._losses(params, key, x, given, weights, None, 0),)
        every, stills = self.frames.film_every, self.frames.still_frames
        films, texts, counts = jax.tree.map(lambda leaf: first_of(leaf, every), (x, given, weights))
        losses = self._losses(params, key, films, texts, counts, self.frames, self.count)
        if not stills:
            return (losses,)
        if self.frames.kind == "shared":  # one loss for all frames
            losses = losses._replace(weight=losses.weight * self.count)
        choice_key, still_key = jax.random.split(jax.random.fold_in(key, 1))
        pictures = choose_frames(choice_key, x, self.count, stills)
        texts, weights = jax.tree.map(lambda leaf: jnp.repeat(leaf, stills, axis=0), (given, weights))
        return losses, self._losses(params, still_key, pictures, texts, weights, PICTURES, 1)

    def _losses(
        self,
        params: Any,
        key: jax.Array,
        x: jax.Array,
        given: Any,
        weights: jax.Array | None,
        frames: FrameTimes | None,
        count: int,
    ) -> Losses:
        loss = validation_loss if self.times is None else functools.partial(diffusion_loss, times=self.times)
        losses = loss(
            functools.partial(network(self.model, params, frames), given=given),
            key,
            x,
            path=self.path,
            prediction=self.prediction,
            frames=frames,
            count=count,
        )
        if weights is None:
            return losses
        return losses._replace(weight=losses.weight * weights.reshape(-1, *[1] * (losses.weight.ndim - 1)))


def mean_loss(parts: Sequence[Losses]) -> jax.Array:
    """The mean of all that counts, a scalar."""
    total = sum(jnp.sum(part.per_example * part.weight) for part in parts)
    return jnp.asarray(total / sum(jnp.sum(part.weight) for part in parts))


def make_objective(config: ConfigDict, model: nn.Module, *, heldout: bool = False) -> Objective:
    """The objective of a configuration, for training or for the held-out loss, where every clip is a film.

    Raises:
        InputError: see `frame_times`.
    """
    path, prediction = make_path(config.diffusion), config.diffusion.prediction
    times = None if heldout else make_times(config.diffusion)
    frames, count = frame_times(config)
    if heldout and frames is not None:
        frames = dataclasses.replace(frames, film_every=1)
    return Objective(model, path, prediction, times, frames, count)


def frame_times(config: ConfigDict) -> tuple[FrameTimes | None, int]:
    """What clips are learned as and the frames of patches that they have; None for images.

    Raises:
        InputError: no such times, or times that the model, or the length of its clips, does not allow.
    """
    model = config.model
    if models.family(model) is models.DiPoM:
        return None, 0
    times, count = make_frame_times(config.diffusion), model.frames // model.frame_patch
    if times.kind in ("clean_past", "teacher_forcing") and count > 1 and not model.frame_causal:
        raise InputError(
            f"diffusion.frame_times='{times.kind}' needs model.frame_causal=True: set it, or "
            "diffusion.frame_times to 'shared' or 'independent'"
        )
    check_frames(times, count)
    return times, count


def network(model: nn.Module, params: Any, frames: FrameTimes | None = None) -> Callable[..., jax.Array]:
    """The model with its parameters bound: (x_t [B, ...], t [B], given=labels [B] or a `Text`) -> [B, ...].

    With `frames` as training draws them, x_t are clips and their drafts one after another.
    """
    options: dict[str, Any] = {"drafts": frames.drafts} if frames is not None and frames.drafts else {}

    def apply(x: jax.Array, t: jax.Array, given: Any) -> jax.Array:
        return cast(jax.Array, model.apply({"params": params}, x, t, given, **options))

    return apply


def first_of(leaf: jax.Array, every: int) -> jax.Array:
    """The first of every so many: [B, ...] -> [B / every, ...]; each device keeps its own."""
    return leaf.reshape(-1, every, *leaf.shape[1:])[:, 0]


def choose_frames(key: jax.Array, x: jax.Array, count: int, chosen: int) -> jax.Array:
    """The first frame of each clip and others, none twice, as clips of one frame of patches.

    A film begins with a first frame, which other frames need not look like: it is what a text asks for.

    Args:
        key: of the draw of the others.
        x: [B, T, ...] clips.
        count: F, their frames of patches.
        chosen: n, how many of them.

    Returns:
        [B n, T / F, ...].
    """
    ranks = jax.random.uniform(key, (len(x), count)).at[:, 0].set(-1.0)
    order = jnp.argsort(ranks, axis=1)[:, :chosen]
    frames = x.reshape(len(x), count, -1, *x.shape[2:])
    return jax.vmap(lambda clip, places: clip[places])(frames, order).reshape(-1, *frames.shape[2:])
