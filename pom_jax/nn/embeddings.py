"""Where a token is, what time it is, which class is wanted: position tables and learned embeddings."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pom_jax.errors import InputError, choose
from pom_jax.nn.dense import Dense

SMALL_NORMAL = nn.initializers.normal(0.02)


def odd_harmonics(height: int, width: int, features: int) -> jax.Array:
    """Sines and cosines of the odd harmonics of coordinates in [0, 1] (official v1, `sincos_embedding_2d`).

    On n points harmonics repeat with period 2 (n - 1), so wide models on small grids see few distinct ones.

    Args:
        height, width: patches in a column and in a row; the first lies at 0 and the last at 1 on any grid.
        features: number of channels, a multiple of 4.

    Returns:
        [H, W, D] float32: sin and cos over columns, then sin and cos over rows.
    """
    _check_multiple_of_four(features)
    frequencies = np.pi * (2 * np.arange(features // 4) + 1)

    def axis(size: int) -> np.ndarray:
        return _sin_cos(np.linspace(0, 1, size)[:, None] * frequencies)

    return _grid(axis(height), axis(width))


def phased_harmonics(height: int, width: int, features: int) -> jax.Array:
    """Frequencies from 1/2 to 2, each with itself as phase (the official code's later branches).

    Args and returns as `odd_harmonics`.
    """
    _check_multiple_of_four(features)
    frequencies = np.linspace(0.5, 2, features // 4)

    def axis(size: int) -> np.ndarray:
        return _sin_cos(np.linspace(0, 1, size)[:, None] * np.pi * frequencies + frequencies)

    return _grid(axis(height), axis(width))


def dit_positions(height: int, width: int, features: int, native: int) -> jax.Array:
    """The geometric frequencies of transformers over patch indices, as in MAE and DiT.

    Coordinates are patch centres measured in patches of the native grid, so the picture has the same
    coordinates at every resolution and the indices 0, 1, 2, ... at the native one.

    Args:
        height, width: patches in a column and in a row.
        features: number of channels, a multiple of 4.
        native: patches in a row of the resolution the model was made for.

    Returns:
        [H, W, D] float32: sin and cos over columns, then sin and cos over rows.
    """
    _check_multiple_of_four(features)
    frequencies = 10000.0 ** (-np.arange(features // 4) / (features // 4))

    def axis(size: int) -> np.ndarray:
        centres = (np.arange(size) + 0.5) * native / size - 0.5
        return _sin_cos(centres[:, None] * frequencies)

    return _grid(axis(height), axis(width))


def _check_multiple_of_four(features: int) -> None:
    if features % 4:
        raise InputError(
            f"sine and cosine positions need a width that is a multiple of 4, got {features}: "
            "choose another width or learned positions"
        )


def _sin_cos(angles: np.ndarray) -> np.ndarray:
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def _grid(rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Two tables [H, D/2] and [W, D/2] to [H, W, D]; only the small ones become constants of the program."""
    shape = (len(rows), len(columns), rows.shape[-1])
    along_columns = jnp.broadcast_to(jnp.asarray(columns)[None], shape)
    along_rows = jnp.broadcast_to(jnp.asarray(rows)[:, None], shape)
    return jnp.concatenate([along_columns, along_rows], axis=-1)


def resize_positions(table: jax.Array, height: int, width: int) -> jax.Array:
    """Resamples a learned table to another grid: bicubic (Keys, -1/2), antialiased, half-pixel centres.

    The official code compares the numbers of patches only, and so leaves a 2 x 8 grid with the table of a
    4 x 4 one; here the shape decides.

    Args:
        table: [H0, W0, D] on the native grid.
        height, width: the grid that is wanted.

    Returns:
        [H, W, D], the table itself on its own grid.
    """
    if table.shape[:2] == (height, width):
        return table
    return jax.image.resize(table, (height, width, table.shape[-1]), method="cubic", antialias=True)


def time_frequencies(features: int, period: float) -> np.ndarray:
    """The falling frequencies period^(-2i/D) (official v1, `freqs`).

    Args:
        features: number of channels D, even.
        period: number of time steps; the longest wave is about as long.

    Returns:
        [D/2] float32.
    """
    if features % 2:
        raise InputError(f"time features come in pairs, got an odd width of {features}: choose an even one")
    return (period ** (-2 * np.arange(features // 2) / features)).astype(np.float32)


def time_features(time: jax.Array, frequencies: np.ndarray | jax.Array) -> jax.Array:
    """Cosines, then sines of time [B] at frequencies [D/2]: [B, D], in float32 whatever the type of time."""
    angles = time.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


# How a network sees time: D features whose base is `n_timesteps`, and 4 D hidden units ("homm", official v1);
# or 256 features of base 10,000 and D hidden units ("dit"), of 1 - t where noise is at 0 ("sit").
TIME_EMBEDDINGS = ("homm", "dit", "sit")
DIT_TIME_FEATURES = 256


class TimeEmbedding(nn.Module):
    """Time features through a two-layer SiLU network, in float32: small, and everything depends on it.

    Attributes:
        features: width D of the embedding.
        n_timesteps: times in [0, 1] are multiplied by it.
        kind: one of `TIME_EMBEDDINGS`.
    """

    features: int
    n_timesteps: int = 1000
    kind: str = "homm"

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """t: [B] in [0, 1] -> [B, D] float32."""
        choose("time_embedding", self.kind, TIME_EMBEDDINGS)
        own = self.kind == "homm"
        sizes = (self.features, self.n_timesteps) if own else (DIT_TIME_FEATURES, 1e4)
        frequencies = time_frequencies(*sizes)
        t = t.astype(jnp.float32)
        x = time_features((1 - t if self.kind == "sit" else t) * self.n_timesteps, frequencies)
        hidden = 4 * self.features if own else self.features
        x = nn.silu(Dense(hidden, kernel_init=SMALL_NORMAL, name="hidden")(x))
        return Dense(self.features, kernel_init=SMALL_NORMAL, name="out")(x)


class ClassEmbedding(nn.Module):
    """A row per class and one for "no class", the last.

    Attributes:
        num_classes: number of classes; the label `num_classes` is the null class of guidance.
        features: width D.
    """

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        """labels: [B] int in [0, num_classes] -> [B, D] float32; NaN for any other label.

        A label's range cannot be checked inside a compiled program (the data source checks it), so a label
        that is out of it must at least not pass for another class.
        """
        table = self.param("table", SMALL_NORMAL, (self.num_classes + 1, self.features), jnp.float32)
        return table.at[labels].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """Cuts images into patches, row by row.

    Args:
        images: [B, H, W, C], H and W multiples of `patch`.
        patch: side of a patch.

    Returns:
        [B, N, patch * patch * C], N = (H / patch) (W / patch); inside a patch: row, column, channel.
    """
    b, h, w, c = images.shape
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(tokens: jax.Array, patch: int, height: int, width: int) -> jax.Array:
    """The inverse of `patchify`: [B, N, patch * patch * C] -> [B, H, W, C]."""
    b = tokens.shape[0]
    c = tokens.shape[-1] // patch**2
    x = tokens.reshape(b, height // patch, width // patch, patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, c)


Positions = Callable[[int, int, int, int], jax.Array]

# Fixed position tables by name: (height, width, features, native) -> [H, W, D].
POSITIONS: dict[str, Positions] = {
    "sincos": lambda h, w, d, native: odd_harmonics(h, w, d),
    "sincos_phase": lambda h, w, d, native: phased_harmonics(h, w, d),
    "dit": dit_positions,
}
