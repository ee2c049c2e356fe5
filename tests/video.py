"""A small block-causal video model of the library's own blocks, and real digits that move."""

import functools

import jax
import numpy as np
from flax import linen as nn

from benchmarks.communication import FrameCausal
from pom_jax.nn.blocks import ModulatedBlock, modulate, modulation, stack
from pom_jax.nn.dense import Dense
from pom_jax.nn.embeddings import ClassEmbedding, TimeEmbedding, patchify, unpatchify


class Video(nn.Module):
    """Denoises frames that lie below each other in one picture; each sees itself and those before.

    Attributes:
        frames: T.
        width, depth, num_classes, reads, scan, remat: as in the library's models.
    """

    frames: int
    width: int
    depth: int
    num_classes: int
    reads: tuple[str, ...] = ("all",)
    scan: bool = True
    remat: str = "none"
    patch_size: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        """x: [B, T H, W, C], t: [B], labels: [B] -> [B, T H, W, C]."""
        rows, columns = x.shape[1] // self.patch_size, x.shape[2] // self.patch_size
        tokens = Dense(self.width, name="patch_embedding")(patchify(x, self.patch_size))
        condition = TimeEmbedding(self.width, 1000, "homm", name="time_embedding")(t)
        condition += ClassEmbedding(self.num_classes, self.width, name="class_embedding")(labels)
        condition = condition[:, None]
        grid = (self.frames, rows // self.frames, columns)
        mixer = functools.partial(FrameCausal, grid, expansion=3, reads=self.reads, period=6.0)
        block = ModulatedBlock(mixer, 1, name="blocks")
        tokens = stack(block, self.depth, tokens, condition, scan=self.scan, remat=self.remat)
        scale, shift = modulation(condition, 2, None)
        tokens = modulate(tokens, scale, shift, None)
        patches = Dense(self.patch_size**2 * x.shape[-1], name="out")(tokens)
        return unpatchify(patches, self.patch_size, x.shape[1], x.shape[2])


def moving(batch: dict[str, np.ndarray], frames: int) -> dict[str, np.ndarray]:
    """Pictures `mean` [B, V, H, W, C] -> T of them below each other, each a column further than the last."""
    parts = [np.roll(batch["mean"], frame, axis=3) for frame in range(frames)]
    return batch | {"mean": np.concatenate(parts, axis=2)}
