"""Films from a trained model, frame after frame or all at once: of a workdir, or of parameters at hand."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pom_jax import models
from pom_jax.data import read_manifest
from pom_jax.data.text_encoder import TextEncoder
from pom_jax.data.words import encode
from pom_jax.diffusion.film_settings import film_settings
from pom_jax.diffusion.guidance import choose_interval
from pom_jax.diffusion.paths import make_path
from pom_jax.diffusion.samplers import Sampler
from pom_jax.errors import InputError
from pom_jax.models import Polymorpher, Text
from pom_jax.sampling.film_checks import check_count, check_films, check_given, check_size, going_on
from pom_jax.sampling.film_programs import Add, Denoise, Programs
from pom_jax.sampling.generate import check_ema, check_numbers, make_mesh, origin
from pom_jax.sampling.made_with import Say, made_with
from pom_jax.sampling.progress import Progress
from pom_jax.sampling.state_file import checksum, read_state, write_state
from pom_jax.sampling.stream import Drawing, Films, StreamedFrames, StreamState, empty_states
from pom_jax.sampling.video_decode import ChunkDecoder, load_text_encoder, load_video_decoder
from pom_jax.training import checkpoint
from pom_jax.training.digest import digests
from pom_jax.training.preview import to_pixels

Prompts = Text | Sequence[str]


class VideoGenerator:
    """Draws films with one model and its parameters, the batch spread over all devices of this process.

    Args:
        config: of the run; reads model, diffusion, ema and sampling.
        model: the network, from `models.build(config.model, config.dtype)`.
        params: its parameters.
        step: how long they were trained.
        ema: which of the averages they are; None for those that were trained.
        words: the table of a model with a vocabulary.
        decoder: makes pixels uint8 [N, T, H, W, 3] of what the model draws; None for a model of pixels.
        text_encoder: embeds the prompts of a model without a vocabulary.
        latents: whether the model is known to draw latents, however few channels they have.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Polymorpher,
        params: Any,
        *,
        step: int = 0,
        ema: int | None = None,
        words: Sequence[str] = (),
        decoder: Any = None,
        text_encoder: TextEncoder | None = None,
        latents: bool = False,
    ):
        self.config, self.model, self.step, self.ema = config, model, step, ema
        self.words, self.decoder, self.text_encoder = tuple(words), decoder, text_encoder
        self.latents = latents
        self.mesh = make_mesh()
        by_batch = NamedSharding(self.mesh, PartitionSpec("data"))
        self._put = functools.partial(jax.device_put, device=by_batch)
        self._whole = NamedSharding(self.mesh, PartitionSpec())
        self.params = jax.device_put(params, self._whole)
        self.programs = Programs(by_batch)

    def __repr__(self) -> str:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        size = " x ".join(map(str, models.sample_shape(self.model)))
        return f"VideoGenerator({self.config.name}, {parameters:,} parameters, {self.origin}, {size})"

    @property
    def origin(self) -> str:
        """Which parameters these are, for people."""
        return origin(self.config, self.step, self.ema)

    @property
    def draws_pixels(self) -> bool:
        """Whether the model itself draws pixels, in [-1, 1]."""
        return self.model.channels in (1, 3) and self.decoder is None and not self.latents

    @property
    def makes_pixels(self) -> bool:
        """Whether pixels come out: the model draws them, or latents are decoded."""
        return self.draws_pixels or self.decoder is not None

    @property
    def whole_frames(self) -> int:
        """Frames of the model in a chunk of the decoder: it makes pixels of whole chunks."""
        return self.decoder.frames if isinstance(self.decoder, ChunkDecoder) else 1

    def check_pixels(self, frames: int = 0, start: int = 0) -> None:
        """Raises an InputError unless pixels can be made of so many frames, from the number `start` on."""
        if not self.makes_pixels:
            raise InputError(
                f"this model draws latents of shape {models.sample_shape(self.model)}: give the autoencoder "
                "that makes pixels of them, --autoencoder=DIR, or load_video(..., autoencoder=DIR) in "
                "Python; or take them as they are, with --out=FILE.npz, or sample_array(...)"
            )
        if frames % self.whole_frames or start % self.whole_frames:
            after = f" after {start} frames" if start else ""
            raise InputError(
                f"frames={frames}{after}: the autoencoder makes pixels of whole chunks of "
                f"{self.whole_frames} frames; ask for a multiple, or leave it out and take the latents"
            )

    def pixels(self, x: np.ndarray) -> np.ndarray:
        """[N, T, H, W, C] of the model -> [N, T, H, W, 1 or 3] uint8; latents are decoded.

        Raises:
            InputError: latents and no decoder, or frames that are no whole chunks of it.
        """
        self.check_pixels(x.shape[1])
        return to_pixels(x) if self.decoder is None else self.decoder(x)

    def first_frames(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels that films shall begin with -> what `stream` takes as `given`; for latents they are encoded.

        Args:
            pixels: [N, T, H, W, 1 or 3] uint8. For latents T is of whole chunks of the autoencoder, or 1: a
                picture stands still, for the frames of latents that a patch of the model holds.

        Returns:
            [N, T', h, w, C] float32 in the space of the model: pixels in [-1, 1], or means of latents.

        Raises:
            InputError: latents and no autoencoder, frames that are no whole chunks.
        """
        self.check_pixels()
        if self.decoder is None:
            return (pixels / 127.5 - 1).astype(np.float32)
        found = self.decoder.encode(pixels)
        return found[:, : self.model.frame_patch] if pixels.shape[1] == 1 else found

    def texts(self, prompts: Sequence[str]) -> Text:
        """Prompts in words -> what the model reads, numpy arrays.

        Raises:
            InputError: no prompt, an empty one, one that is too long or has unknown words; no words, or no
                text encoder.
        """
        listed = isinstance(prompts, Sequence | np.ndarray) and not isinstance(prompts, str)
        if not listed or not len(prompts) or not all(isinstance(prompt, str) for prompt in prompts):
            raise InputError(f"prompts must be a list of at least one text; got {prompts!r}")
        if self.model.vocabulary:
            if len(self.words) != self.model.vocabulary:
                raise InputError(
                    f"the model has a table of {self.model.vocabulary} words, and {len(self.words)} are "
                    "known: data.dir of the run must be the folder of the data that it learned from"
                )
            numbers = [encode(prompt, self.words, self.model.text_length) for prompt in prompts]
            tokens: Any = np.stack(numbers)
            return Text(tokens, (tokens != 0).astype(np.float32))
        if not all(prompt.strip() for prompt in prompts):
            raise InputError(f"prompts {list(prompts)}: one is empty; say what to show")
        if self.text_encoder is None:
            raise InputError(
                f"this model reads embeddings of {self.model.text_width} channels: give the encoder that its "
                "captions were embedded with, --text_encoder=DIR, or load_video(..., text_encoder=DIR)"
            )
        for prompt, length in zip(prompts, self.text_encoder.lengths(prompts), strict=True):
            if length > self.model.text_length:
                raise InputError(
                    f"prompt {prompt!r} has {length} tokens, this model reads at most "
                    f"{self.model.text_length}"
                )
        found: Any = self.text_encoder(prompts)
        return Text(found["text"].astype(np.float32), found["text_mask"].astype(np.float32))

    def sample(self, text: Prompts, frames: int | None = None, **settings: Any) -> np.ndarray:
        """`sample_array` in pixels, [N, T, H, W, 1 or 3] uint8."""
        state: StreamState | None = settings.get("state")
        total = self.model.frames if frames is None else frames
        check_count("frames", total)
        self.check_pixels(total, state.frame if state else 0)
        return self.pixels(self.sample_array(text, frames, **settings))

    def sample_array(
        self,
        text: Prompts,
        frames: int | None = None,
        *,
        joint: bool | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Draws whole films, one for each text.

        Args:
            text: N prompts, or what `texts` made of them.
            frames: T of a film, the given ones included; those of the training clips by default.
            joint: draws all frames at once, with one time, instead of one chunk after the other; by default
                what a model without states must.
            settings: of `stream`.

        Returns:
            [N, T, H, W, C] float32 in the space of the model.

        Raises:
            InputError: see `stream`.
        """
        total = self.model.frames if frames is None else frames
        joint = not self.model.frame_causal if joint is None else joint
        films = self.stream(text, total, joint=joint, **settings)
        return np.concatenate([piece.frames for piece in films], axis=1)

    def stream(
        self,
        text: Prompts | None = None,
        frames: int | None = None,
        *,
        joint: bool = False,
        chunk: int | None = None,
        size: tuple[int, int] | None = None,
        given: np.ndarray | None = None,
        state: StreamState | None = None,
        guidance: float | None = None,
        later_guidance: float | None = None,
        steps: int | None = None,
        later_steps: int | None = None,
        sampler: str | Sampler | None = None,
        interval: Sequence[float] | None = None,
        schedule: str = "constant",
        clip: float | None = None,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> Iterator[StreamedFrames]:
        """Draws films chunk by chunk, all of them side by side; see `sampling.stream` for how.

        Memory and time of a chunk do not depend on how many came before: the states of PoM do not grow, and
        the same compiled programs draw every chunk and add its states (one more draws first frames, if those
        take other steps). Attention's caches do grow, with the tokens: they are doubled when they are full,
        and the programs compiled anew then.

        The noise of frame f of film i depends on (seed, i, f) alone, not on batches or chunks. Films that go
        on from a state at the end of a chunk are those of an uninterrupted stream bit for bit, given the same
        settings and batches.

        Args:
            text: N prompts, or what `texts` made of them; with `state` the film's own by default.
            frames: T, how many come out, the given ones included; None for a stream that does not end.
            joint: draws all frames as one piece, with one time; nothing is given or carried on then.
            chunk: frames that are drawn at a time; as few as the model can by default.
            size: (H, W) of a frame; that of the state, of the given frames or of the training clips by
                default.
            given: [N, T0, H, W, C] first frames, in the space of the model: they are added as they are.
            state: of films that go on.
            guidance: scale in the usual sense, 1 = off, 0 = without text; like `steps`, `sampler` and
                `interval` the run's own (config.sampling) by default.
            later_guidance, later_steps: of frames behind finished ones, from which they know what they show:
                a strong guidance makes them drift, and few steps do. With guidance 1 they take half the time
                and states. By default the run's own, if it has them, else those of first frames.
            steps, sampler, clip: see `diffusion.sample`. Pixels are always cut to [-1, 1] once finished.
            interval, schedule: of the guidance, see `diffusion.guide`.
            seed: of the noise; that of the state, or 0, by default.
            first: number i of the first film, so that films of several calls are those of one; with `state`
                its films keep theirs.
            batch_size: films drawn at once, over all devices.
            progress: is told what happens.

        Returns:
            What comes out, in order, as it is drawn.

        Raises:
            InputError: a setting that cannot be used, before anything is compiled; from the iterator, frames
                that are not finite.
        """
        if joint and (frames is None or chunk is not None or given is not None or state is not None):
            way = "stream it" if self.model.frame_causal else "only a model with frame_causal=True can"
            raise InputError(
                "a film that is drawn at once (joint) has an end and no chunks, and goes on from no given "
                f"frames or state: {way}"
            )
        words, captions = (state.text, state.captions) if text is None and state else self._text(text)
        count, defaults = len(words.mask), self.config.sampling
        if chunk is None:
            chunk = frames if joint and frames else self.model.frame_patch
        settings = film_settings(defaults, guidance, later_guidance, steps, later_steps)
        seed = (state.seed if state else 0) if seed is None else seed
        check_numbers(batch_size, seed, first)
        if given is not None:
            check_given(given)
        if size is None:
            size = state.size if state else self._frame_size(given)
        size = check_size(size)
        shape = (chunk, *size, self.model.channels)
        check_films(self.model, count, frames, shape, given)
        denoise = Denoise(
            model=self.model,
            path=make_path(self.config.diffusion),
            prediction=self.config.diffusion.prediction,
            shape=shape,
            sampler=defaults.sampler if sampler is None else sampler,
            steps=settings[0].steps,
            shift=self.config.diffusion.shift,
            clip=clip,
            interval=choose_interval(interval, defaults),
            schedule=schedule,
            guided=settings[0].guidance != 1,
            bounded=self.draws_pixels,
        )
        later = dataclasses.replace(denoise, steps=settings[1].steps, guided=settings[1].guidance != 1)
        if state is None:
            films = (first + np.arange(count)).astype(np.uint32)
            halves = () if joint else (empty_states(self.model, count, size),) * (2 if later.guided else 1)
            state = StreamState(0, size, seed, films, words, captions, halves)
        else:
            state = going_on(state, size, seed, words, captions, settings[1].guidance)
        devices = self.mesh.size
        drawing = Drawing(
            films=Films(state, -(-min(batch_size, count) // devices) * devices, self._put),
            given=given,
            denoise=(denoise, later),
            add=None if joint else Add(self.model),
            programs=self.programs,
            params=self.params,
            scales=(settings[0].guidance, settings[1].guidance),
            put=self._put,
            whole=functools.partial(jax.device_put, device=self._whole),
            progress=progress,
        )
        drawing.prepare(frames)
        return drawing.frames(frames)

    def save_state(self, path: str | os.PathLike[str], state: StreamState) -> None:
        """Writes the state of films (`StreamedFrames.state`), so that `stream` can go on another day.

        Args:
            path: ending in .npz; an older file is replaced once the new one is complete.
            state: of films of this generator.

        Raises:
            InputError: another ending, or a place or disk that takes no file.
        """
        write_state(path, state, self._checksum)

    def load_state(self, path: str | os.PathLike[str]) -> StreamState:
        """Reads what `save_state` wrote.

        Raises:
            InputError: no such file, a damaged one, or one of films of another model.
        """
        return read_state(path, functools.partial(empty_states, self.model, 1), self._checksum)

    @functools.cached_property
    def _checksum(self) -> str:
        """Of all that states mean something to: the model and its parameters.

        Fields at their defaults are left out, so that a field that is added one day changes no checksum.
        """
        fields = models.own_fields(Polymorpher)
        model = {name: getattr(self.model, name) for name in fields if name not in ("scan", "remat")}
        unusual = {name: value for name, value in model.items() if value != fields[name].default}
        meaning = {"model": unusual, "dtype": self.config.dtype, "parameters": digests(self.params)}
        return checksum(meaning)

    def _text(self, text: Prompts | None) -> tuple[Text, tuple[str, ...]]:
        """What the model reads, and the words where they are known."""
        if text is None:
            raise InputError("which films? Give prompts, or the state of films that go on")
        if isinstance(text, Text):
            if not len(text.mask):
                raise InputError(f"there are no texts: the mask has the shape {np.shape(text.mask)}")
            text = jax.tree.map(np.asarray, text)
            words = self.model.vocabulary
            if words and text.tokens.size and not 0 <= text.tokens.min() <= text.tokens.max() < words:
                raise InputError(
                    f"text.tokens has numbers from {text.tokens.min()} to {text.tokens.max()}, and the model "
                    f"a table of {words} words: 0 to {words - 1}"
                )
            return text, ()
        return self.texts(text), tuple(text)

    def _frame_size(self, given: np.ndarray | None) -> tuple[int, int]:
        if given is None or given.ndim != 5:
            return self.model.frame_height, self.model.frame_width
        return given.shape[2], given.shape[3]


def load_video(
    workdir: str | Path,
    step: int | None = None,
    ema: int | None = 0,
    autoencoder: str | os.PathLike[str] | None = None,
    text_encoder: str | os.PathLike[str] | None = None,
    say: Say = print,
) -> VideoGenerator:
    """Reads a trained model of video from the workdir of train.py.

    Args:
        workdir: of the run.
        step: which checkpoint; the newest by default.
        ema: which of the averages of the parameters; None for the parameters themselves.
        autoencoder: folder of the autoencoder that the latents are of, in diffusers' format.
        text_encoder: folder of the encoder that the captions were embedded with, in transformers' format.
        say: is told what is taken for granted, of a run that does not keep what its data was made with, and
            how far the checksum of large weights is.

    Raises:
        InputError: not a workdir, or one of a model of images; no such checkpoint or average in it, no such
            autoencoder or text encoder, or others than those that its data was made with.
    """
    config = checkpoint.load_config(workdir)
    if models.family(config.model) is not Polymorpher:
        raise InputError(
            f"{workdir} is a run of a model of images and classes: pom_jax.load(...) reads it in Python, and "
            "python sample.py --workdir=... --classes=0,1 draws"
        )
    check_ema(config, ema)
    model = models.build(config.model, config.dtype)
    assert isinstance(model, Polymorpher)
    encoding = made_with(config, say if autoencoder or text_encoder else lambda _: None)
    encoder = None if text_encoder is None else load_text_encoder(text_encoder, model, encoding, say)
    decoder = None if autoencoder is None else load_video_decoder(autoencoder, config, encoding, say)
    whole = NamedSharding(make_mesh(), PartitionSpec())
    params, step = checkpoint.restore_params(workdir, step, ema, whole)
    words = tuple(config.data.get("words", ()))
    if model.vocabulary and not words:
        with contextlib.suppress(InputError):  # without words the model draws what `Text` says in numbers
            words = read_manifest(config.data.dir).words
    return VideoGenerator(
        config,
        model,
        params,
        step=step,
        ema=ema,
        words=words,
        decoder=decoder,
        text_encoder=encoder,
        latents=encoding.get("autoencoder") is not None,
    )
