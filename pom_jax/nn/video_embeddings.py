"""Clips to tokens and back, and where a token of a clip lies."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from pom_jax.nn.dense import Dense
from pom_jax.nn.embeddings import SMALL_NORMAL, phased_harmonics

Grid = tuple[int, int, int]

# What tokens or words are told apart by: as large as what they carry, for small ones are learned slowly.
UNIT_NORMAL = nn.initializers.normal(1.0)


class WordEmbedding(nn.Module):
    """Words of a small vocabulary, and their places in the text, as embeddings that are learned.

    Attributes:
        vocabulary: number of words, the first of which stands for none.
        length: most words of a text.
        features: channels of an embedding.
    """

    vocabulary: int
    length: int
    features: int

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        """words: [B, M] int in [0, vocabulary) -> [B, M, features] float32; NaN for any other number."""
        table = self.param("table", UNIT_NORMAL, (self.vocabulary, self.features), jnp.float32)
        places = self.param("places", UNIT_NORMAL, (self.length, self.features), jnp.float32)
        found = table.at[words].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return found + places[: words.shape[1]]


class PooledText(nn.Module):
    """The mean of a text through a two-layer SiLU network, in float32, to be added to the embedding of time.

    So the text also scales, shifts and gates whatever time does (Stable Diffusion 3, arXiv 2403.03206).

    Attributes:
        features: width D of the embedding.
    """

    features: int

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """tokens: [B, M, channels] of a text, mask: [B, M] -> [B, D] float32; no text has a vector, too."""
        weights = mask.astype(jnp.float32)[..., None]
        mean = jnp.sum(tokens * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)
        x = nn.silu(Dense(4 * self.features, name="hidden")(mean))
        return Dense(self.features, kernel_init=SMALL_NORMAL, name="out")(x)


class ContextEmbedding(nn.Module):
    """What the frames before a patch's own show around its place, as an addition to its token.

    A local path beside the state, which is global: what moved by no more than half a patch since a frame lies
    in the window that is cut out of it. Frames before are joined as further channels, as image-to-video
    models and GameNGen (arXiv 2408.14837) join theirs; the windows overlap as a strided convolution's do.

    Attributes:
        features: width D of the tokens.
        patch: side of a patch, p; a window has p // 2 more on each side, zeros beyond the frame's border.
        dtype: of the product, float32 if None.
    """

    features: int
    patch: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        """frames: [B, F, H, W, C], those before each of F frames side by side -> [B, N, D]."""
        windows = cut_windows(frames, self.patch)
        return Dense(self.features, use_bias=False, dtype=self.dtype, name="windows")(windows)


def cut_windows(frames: jax.Array, patch: int) -> jax.Array:
    """The window around each patch of each frame: [B, F, H, W, C] -> [B, N, side * side * C].

    side = patch + 2 (patch // 2); the order of the patches is that of `cut_clips`.
    """
    b, _, h, w, c = frames.shape
    margin = patch // 2
    side = patch + 2 * margin
    padded = jnp.pad(frames, ((0, 0), (0, 0), (margin, margin), (margin, margin), (0, 0)))
    rows, columns = (np.arange(0, size, patch)[:, None] + np.arange(side) for size in (h, w))
    found = padded[:, :, rows][:, :, :, :, columns]  # [B, F, rows, side, columns, side, C]
    return found.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, -1, side**2 * c)


def frames_before(frames: jax.Array, past: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The n frames before each frame.

    Args:
        frames: [B, F, H, W, C].
        past: [n, B, H, W, C] before the first of them, the newest last.

    Returns:
        [B, F, H, W, n C], the newest last, and the n last frames [n, B, H, W, C].
    """
    length = frames.shape[1]
    line = jnp.concatenate([jnp.moveaxis(past, 0, 1).astype(frames.dtype), frames], axis=1)
    before = jnp.concatenate([line[:, i : i + length] for i in range(len(past))], axis=-1)
    return before, jnp.moveaxis(line[:, length:], 1, 0)


def frames_of_patches(clips: jax.Array, frame_patch: int) -> jax.Array:
    """The frames of a patch as one with more channels: [B, T, H, W, C] -> [B, T / p, H, W, p C]."""
    b, t, h, w, c = clips.shape
    x = clips.reshape(b, t // frame_patch, frame_patch, h, w, c)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(b, -1, h, w, frame_patch * c)


def cut_clips(clips: jax.Array, frame_patch: int, patch: int) -> jax.Array:
    """Cuts clips into patches, frame after frame, row by row.

    Args:
        clips: [B, T, H, W, C].
        frame_patch: frames of a patch; divides T.
        patch: its side; divides H and W.

    Returns:
        [B, N, frame_patch * patch * patch * C]; inside a patch: frame, row, column, channel.
    """
    b, t, h, w, c = clips.shape
    x = clips.reshape(b, t // frame_patch, frame_patch, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, frame_patch * patch**2 * c)


def join_clips(tokens: jax.Array, frame_patch: int, patch: int, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `cut_clips`: tokens [B, N, patch's size] -> clips of `shape`, [B, T, H, W, C]."""
    b, t, h, w, c = shape
    x = tokens.reshape(b, t // frame_patch, h // patch, w // patch, frame_patch, patch, patch, c)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(shape)


def phased_frames(grid: Grid, native: Grid, features: int, first: int | jax.Array = 0) -> jax.Array:
    """Waves of half a period to two over the clip, in time and on both axes (official `text2video`).

    Half of the channels go with time, a quarter each with columns and rows. Frames after those of the native
    clip lie beyond 1 in time.

    Args:
        grid: frames, rows and columns of patches.
        native: those that the model is made for; its frames lie at 0 to 1.
        features: D, a multiple of 8.
        first: number of the first frame of patches in its film.

    Returns:
        [T, H, W, D] float32.
    """
    frequencies = jnp.asarray(np.linspace(0.5, 2, features // 4), jnp.float32)
    frames = (jnp.arange(grid[0]) + first) / max(1, native[0] - 1)
    angles = frames[:, None] * np.pi * frequencies + frequencies
    time = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, None, None]
    space = phased_harmonics(*grid[1:], features // 2)[None]
    shapes = ((*grid, each.shape[-1]) for each in (time, space))
    return jnp.concatenate([jnp.broadcast_to(a, s) for a, s in zip((time, space), shapes, strict=True)], -1)


def phased_grid(grid: Grid, native: Grid, features: int, first: int | jax.Array = 0) -> jax.Array:
    """The same waves on rows and columns alone: [1, H, W, D]; a frame does not know its number."""
    del native, first
    return phased_harmonics(*grid[1:], features)[None]


FramePositions = Callable[[Grid, Grid, int, int | jax.Array], jax.Array]

# Fixed position tables of clips by name: (grid, native, features, first) -> [T or 1, H, W, D].
FRAME_POSITIONS: dict[str, FramePositions] = {"sincos_phase": phased_frames, "sincos_grid": phased_grid}
