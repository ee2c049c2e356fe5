"""Grids of samples drawn while training goes on, always from the same noise, so that progress is visible."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pom_jax import models
from pom_jax.data import Source
from pom_jax.data.words import decode
from pom_jax.diffusion.film_settings import FrameSettings, film_settings
from pom_jax.diffusion.guidance import choose_interval, guide
from pom_jax.diffusion.paths import make_path
from pom_jax.diffusion.samplers import sample
from pom_jax.ops.mesh import lay
from pom_jax.training import conditions
from pom_jax.training.objective import frame_times, network

WriteImages = Callable[[Path, np.ndarray, np.ndarray, Sequence[str] | None], None]


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the samples are of.

    Attributes:
        given: labels [N] or a `Text`, of N samples.
        labels: [N], and the name of each, for the picture; names are the labels themselves by default.
    """

    given: Any
    labels: np.ndarray
    names: Sequence[str] | None = None


def shown(config: ConfigDict, heldout: Source) -> Shown:
    """The classes in turn, or the texts of the first held-out clips."""
    count = config.sampling.num
    if models.family(config.model) is models.DiPoM:
        labels = labels_in_turn(config.model.num_classes, count)
        return Shown(jnp.asarray(labels, jnp.int32), labels)
    records = heldout.gather(np.arange(count) % len(heldout))
    fields = {name: jnp.asarray(records[name]) for name in ("text", "text_mask") if name in records}
    words = heldout.manifest.words
    names = [decode(text, words) for text in records["text"]] if words else None
    return Shown(conditions.condition(config.model, fields), np.arange(count), names)


def _frame_by_frame(
    predict: Callable[..., jax.Array],
    guided: Callable[..., Any],
    key: jax.Array,
    noise: jax.Array,
    count: int,
    settings: tuple[FrameSettings, FrameSettings],
    options: dict[str, Any],
) -> jax.Array:
    """Clips whose frames are drawn one after the other, for models that were trained on clean pasts alone.

    Each frame is denoised within the clip, behind the finished frames at time 0: since no frame sees later
    ones, that is what carried states would give, at the cost of a clip for every frame.

    Args:
        predict: the network, (x [N, T, H, W, C], t [N, F], given).
        guided: makes of such a network, and of the scale, one that is guided.
        key: of the sampler.
        noise: [N, T, H, W, C].
        count: F, frames of patches.
        settings: of the first frame and of later ones.
        options: of `sample`, besides.
    """
    length = noise.shape[1] // count

    def add(own: FrameSettings, clips: jax.Array, frame: jax.Array) -> tuple[jax.Array, None]:
        at = frame * length

        def behind(x: jax.Array, t: jax.Array, given: Any) -> jax.Array:
            past = jnp.concatenate([clips] * (len(x) // len(clips)))  # guidance doubles x
            whole = jax.lax.dynamic_update_slice_in_dim(past, x, at, axis=1)
            times = jnp.where(jnp.arange(count) == frame, t[:, None], 0)
            return jax.lax.dynamic_slice_in_dim(predict(whole, times, given), at, length, axis=1)

        start = jax.lax.dynamic_slice_in_dim(noise, at, length, axis=1)
        noise_of = jax.random.fold_in(key, frame)
        x = sample(guided(behind, own.guidance), noise_of, start, steps=own.steps, **options)
        x = jnp.clip(x, -1, 1) if x.shape[-1] in (1, 3) else x  # pixels, as in films
        return jax.lax.dynamic_update_slice_in_dim(clips, x, at, axis=1), None

    first, later = settings
    clips, _ = add(first, jnp.zeros_like(noise), jnp.int32(0))
    return jax.lax.scan(functools.partial(add, later), clips, jnp.arange(1, count))[0]


class Preview:
    """Draws `sampling.num` samples with the averaged parameters and writes them in the background.

    Args:
        config: of the run; reads sampling, diffusion, model and seed.
        model: the network.
        folder: where the grids go.
        write: writes images [N, H, W, C] or clips [N, T, H, W, C] uint8, labels [N] and names to a .png.
        params: shapes and shardings of the parameters.
        samples: what they are of.

    Raises:
        InputError: a field of `config.sampling` cannot be used.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: models.Model,
        folder: Path,
        write: WriteImages,
        params: Any,
        samples: Shown,
    ):
        self._folder, self._write, self._params, self._shown = folder, write, params, samples
        self._writing: Future[None] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="preview")
        shape = (config.sampling.num, *models.sample_shape(model))
        path = make_path(config.diffusion)
        key = jax.random.fold_in(jax.random.key(config.seed), 2)

        options = {
            "path": path,
            "prediction": config.diffusion.prediction,
            "sampler": config.sampling.sampler,
            "shift": config.diffusion.shift,
        }
        frames, count = frame_times(config)
        settings, interval = film_settings(config.sampling), choose_interval(None, config.sampling)

        def guided(
            predict: Callable[..., jax.Array], scale: float
        ) -> Callable[[jax.Array, jax.Array], jax.Array]:
            return guide(
                predict, samples.given, conditions.none(config.model, samples.given), scale, interval
            )

        @jax.jit
        def draw(params: Any) -> jax.Array:
            noise_key, sampler_key = jax.random.split(key)
            noise, predict = jax.random.normal(noise_key, shape), network(model, params)
            if frames is not None and frames.kind in ("clean_past", "teacher_forcing"):
                images = _frame_by_frame(predict, guided, sampler_key, noise, count, settings, options)
            else:
                whole = guided(predict, settings[0].guidance)
                images = sample(whole, sampler_key, noise, steps=settings[0].steps, **options)
            return lay(images, *(None for _ in shape))  # the process that writes them has them all

        self._draw: Any = draw
        jax.eval_shape(draw, params)  # a wrong field of the config fails here, before anything is compiled

    def compile(self) -> None:
        """Compiles the sampler ahead of its first use."""
        self._folder.mkdir(exist_ok=True)
        self._draw = self._draw.lower(self._params).compile()

    def draw(self, params: Any, step: int, say: Callable[[str], None]) -> jax.Array:
        """Draws, and says when the picture is there; raises here an error of the one before.

        Returns:
            The samples [N, H, W, C].
        """
        self.wait()
        images = jax.block_until_ready(self._draw(params))  # what the device says is not for the writer

        def write() -> None:
            path = self._folder / f"step_{step:07d}.png"
            self._write(path, to_pixels(images), self._shown.labels, self._shown.names)
            say(f"step {step:,} | picture: {path}")

        if jax.process_index() == 0:
            self._writing = self._writer.submit(write)
        return images

    def wait(self) -> None:
        """Waits for the grid that is being written; raises its error, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits, then ends the writing thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()


def labels_in_turn(num_classes: int, num: int) -> np.ndarray:
    """Labels [num] that go through the classes in turn; of more classes than that, evenly spaced ones."""
    places = np.arange(num)
    return places * num_classes // num if num < num_classes else places % num_classes


def to_pixels(x: Any) -> np.ndarray:
    """What can be shown of samples: pixels in [-1, 1], or the first three channels of latents in [-3, 3].

    Args:
        x: [..., H, W, C] float; one or three channels are taken for pixels. What lies outside is clipped.

    Returns:
        [..., H, W, 1 or 3] uint8.
    """
    x = np.asarray(x)
    if x.shape[-1] not in (1, 3):
        x = x[..., :3] / 3
    return np.round(127.5 * (np.clip(x, -1, 1) + 1)).astype(np.uint8)
