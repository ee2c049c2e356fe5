"""FID of a few samples while a model trains: the same noise every time, so that the course can be read."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental.multihost_utils import process_allgather
from ml_collections import ConfigDict

from pom_jax.diffusion.guidance import interval_in_words
from pom_jax.durations import duration
from pom_jax.errors import InputError
from pom_jax.evaluation.features import extract_features
from pom_jax.evaluation.frechet import Moments, gaussian_distance
from pom_jax.evaluation.images import open_images
from pom_jax.evaluation.inception import POOL
from pom_jax.evaluation.inception_weights import load_inception
from pom_jax.evaluation.reference import Reference, fit_reference, open_reference
from pom_jax.evaluation.shards import rgb
from pom_jax.sampling import Generator
from pom_jax.sampling.decode import load_decoder
from pom_jax.sampling.generate import make_mesh
from pom_jax.sampling.made_with import made_with
from pom_jax.training import sharding
from pom_jax.training.fid import Say, Stops
from pom_jax.training.preview import labels_in_turn


class TrainingFid:
    """FID of `fid.num` samples of averaged parameters, labels in turn over all classes.

    FID falls with the number of samples: compare it along a run and between runs with the same `fid` section,
    not with numbers of 50,000. The samples are drawn with the parameters where they lie, by all processes
    together; each puts its share of them through Inception.

    Args:
        config: of the run; reads fid, model, diffusion, ema, mesh, seed.
        model: the network.

    Attributes:
        name: of the score in a row, such as `fid_2048`: after the number of samples.

    Raises:
        InputError: no such reference, weights or autoencoder, or those of something else.
    """

    def __init__(self, config: ConfigDict, model: nn.Module):
        self._config = fid = config.fid
        self.name = f"fid_{fid.num}"
        self._weights = load_inception(fid.inception)
        self._opened = open_reference(fid.reference, autoencoder=fid.autoencoder or None)
        self._opened.check(self._weights)
        decoder = None
        if fid.autoencoder:
            made = made_with(config, say=lambda _: None)
            decoder = load_decoder(fid.autoencoder, config.model.channels, made)
        mesh = sharding.make_mesh(config.mesh)
        self._generator = Generator(config, model, None, ema=0, decoder=decoder, mesh=mesh)
        self._generator.check_pixels()
        self._seed = config.seed
        self._share = -(-fid.num // jax.process_count())
        if self._share < 2:
            raise InputError(f"fid.num={fid.num} is less than two samples for each of the processes")
        self._batches = -(-self._share // max(fid.batch_size, 2))
        self._part = -(-self._share // self._batches)  # of a process in each batch
        self._labels = labels_in_turn(config.model.num_classes, fid.num)
        self._reference: Reference | None = None

    def prepare(self, say: Say, moved: Say = lambda _: None) -> None:
        """Puts the reference through the network, unless its file holds the statistics already."""
        say(f"compiling Inception, for FID of {self._config.num:,} samples against {self._opened.protocol}")
        with jax.set_mesh(make_mesh()):
            reading = _Moved(moved, "Inception network, reference")
            self._reference = fit_reference(self._opened, self._weights, progress=reading)

    def __call__(
        self,
        params: Any,
        step: int,
        say: Say,
        moved: Say = lambda _: None,
        stops: Stops = lambda: False,
    ) -> Mapping[str, np.ndarray] | None:
        """Draws and scores; NaN where the samples are not finite, as they may be early in a run.

        Args:
            params: averaged parameters, on the mesh of the run.
            step: how long they were trained.
            say: told the score.
            moved: told what comes next, whenever something is done.
            stops: asked before each batch whether to stop; told the same on all processes.

        Returns:
            A scalar by its name; None where it was stopped.
        """
        if self._reference is None:
            self.prepare(say, moved)
        assert self._reference is not None
        began, count = time.perf_counter(), self._config.num
        pool = self._features(params, say, moved, stops)
        if pool is None:
            say(f"step {step:,} | its FID waits until the run goes on")
            return None
        score = np.nan
        if np.isfinite(pool).all():
            moments = Moments(POOL)
            moments.add(pool)
            score = gaussian_distance(self._reference.statistics.pool, moments.gaussian())
        fid = self._config
        say(
            f"step {step:,} | FID {score:.2f} of {count:,} samples ({fid.sampler}, {fid.steps} steps, "
            f"guidance {fid.guidance:g}{interval_in_words(fid.guidance_interval, fid.guidance)}; "
            f"took {duration(time.perf_counter() - began)})"
        )
        return {self.name: np.asarray(score)}

    def _features(self, params: Any, say: Say, moved: Say, stops: Stops) -> np.ndarray | None:
        """Inception's pool features of all samples, [num, 2048]; NaN if a sample is not finite.

        Drawn and read batch by batch, each process a part of it; None where it was stopped between two.
        """
        part, own = self._part, []
        every, first = part * jax.process_count(), part * jax.process_index()
        # The last batch is a whole one too, so that nothing compiles twice.
        labels = np.resize(self._labels, self._batches * every)
        for start in range(0, len(labels), every):
            if stops():
                return None
            drawing = _Moved(moved, "sampler", start, self._config.num)
            reading = _Moved(moved, "Inception network", len(own) * part, self._share)
            try:
                drawn = self._draw(params, labels[start : start + every], start, drawing)
            except InputError as error:  # all processes meet it
                say(f"no FID: {error}")
                return np.full((self._config.num, POOL), np.nan, np.float32)
            with jax.set_mesh(make_mesh()):
                images = rgb(self._generator.pixels(drawn[first : first + part], drawing))
                own.append(extract_features(open_images(images), self._weights, progress=reading).pool)
        found = process_allgather(np.stack(own)).reshape(-1, self._batches, part, POOL)
        return found.swapaxes(0, 1).reshape(-1, POOL)[: self._config.num]

    def _draw(self, params: Any, labels: np.ndarray, first: int, progress: "_Moved") -> np.ndarray:
        """All samples of a batch, [B, H, W, C], on every process."""
        self._generator.params = params
        try:
            with jax.set_mesh(self._generator.mesh):
                return self._generator.sample_array(
                    labels,
                    guidance=self._config.guidance,
                    interval=self._config.guidance_interval,
                    sampler=self._config.sampler,
                    steps=self._config.steps,
                    seed=self._seed,
                    first=first,
                    batch_size=len(labels),
                    progress=progress,
                )
        finally:
            self._generator.params = None  # the next step writes where they lie


class _Moved:
    """The progress of samplers and networks, in words for whoever only has to know that there is some.

    Args:
        tell: is told.
        doing: what is at work.
        done: images of the batches before.
        total: images of all batches; those of this one by default.
    """

    def __init__(self, tell: Say, doing: str, done: int = 0, total: int | None = None):
        self._tell, self._doing, self._done, self._total = tell, doing, done, total

    def compiling(self, what: str) -> None:
        self._tell(f"compiling the {what} for FID")

    def compiled(self, seconds: float) -> None:
        self._tell(f"FID: {self._doing}")

    def drawn(self, images: int, total: int) -> None:
        total = total if self._total is None else self._total
        self._tell(f"FID: {self._doing}, {min(self._done + images, total):,} of {total:,} images")
