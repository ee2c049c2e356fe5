"""Class-conditional diffusion transformer over images: DiPoM, and DiT when the mixer is attention."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from pom_jax.errors import InputError
from pom_jax.models.checks import check_fields
from pom_jax.models.mixers import layer_mixers
from pom_jax.nn.blocks import ModulatedBlock, blocks_of, modulate, modulation, stack
from pom_jax.nn.dense import Dense
from pom_jax.nn.embeddings import (
    POSITIONS,
    SMALL_NORMAL,
    ClassEmbedding,
    TimeEmbedding,
    patchify,
    resize_positions,
    unpatchify,
)


class DiPoM(nn.Module):
    """Polymorpher for images given a class (v1, figure 3; official `ClassConditionalDiH`, `DiHpp` and `DiT`).

    Patches become tokens, blocks modulated by time and class mix them, each token becomes a patch again. The
    output is zero at start. `pom_jax.models.build` makes one from a configuration.

    Attributes:
        image_size: side of the images the model is made for, in pixels or latent cells; others run as well.
        channels: C of the images.
        num_classes: classes; the label `num_classes` stands for none. 1 for an unconditional model.
        patch_size: side of a patch.
        width: D, channels of a token.
        depth: L, number of blocks.
        mixer: of a layer, "pom", "attention", or "hybrid", which is both side by side, see `nn.Hybrid`.
        form, degree, expansion, gate_heads, groups: of PoM, see `nn.PoM`.
        rotary: rotary positions of PoM's features and gates on the grid of patches, see `nn.Rotary`.
        phase_periods: periods, in patches, of a phase read (see `nn.Phase`): its frequencies on each axis are
            zero and both directions of each period. () for none.
        attention_every: k makes every k-th layer attention instead (layer i where k divides i + 1); 0 none.
        num_heads, head_width: of attention; heads of width 0 share the width D.
        window: radius of attention's windows on the grid of patches; registers see and are seen by all. 0
            for attention to all tokens.
        ffn_expansion: hidden width of the feed-forward networks as a multiple of the width.
        registers: learned tokens put before the patches and dropped at the end.
        positions: "sincos" (official v1), "sincos_phase" (its later branches), "dit" (MAE and DiT), or
            "learned": tables on the native grid added to the tokens and, with a row for each register, to the
            condition, which is then one a token.
        native_size: side of the images whose patches the positions "dit" count, for a picture to keep its
            coordinates at another `image_size`; 0 for `image_size`.
        n_timesteps: the network sees t times this; also the base of its time frequencies.
        time_embedding: "homm" (the authors'), "dit" or "sit", see `nn.embeddings.TIME_EMBEDDINGS`.
        activation: of the feed-forward networks, "gelu" or "gelu_tanh" (DiT's).
        unit_gates: gates are kept as the authors' 1 + g, see `nn.blocks.ModulatedBlock`.
        clamp: bound on the absolute value of what a block returns, 0 for none.
        scan: blocks in a loop (quick to compile) or unrolled; the same parameters and numbers.
        remat: "none", "dots", "states" or "full", see `nn.blocks.stack`.
        dtype: compute dtype of products and residual stream, float32 if None. Parameters and output: float32.
    """

    image_size: int
    channels: int
    num_classes: int
    patch_size: int
    width: int
    depth: int
    mixer: str = "pom"
    form: str = "product"
    degree: int = 2
    expansion: int = 2
    gate_heads: int = 1
    groups: int = 1
    rotary: bool = False
    phase_periods: tuple[float, ...] = ()
    attention_every: int = 0
    num_heads: int = 1
    head_width: int = 0
    window: int = 0
    ffn_expansion: int = 4
    registers: int = 0
    positions: str = "sincos"
    native_size: int = 0
    n_timesteps: int = 1000
    time_embedding: str = "homm"
    activation: str = "gelu"
    unit_gates: bool = False
    clamp: float = 0.0
    scan: bool = True
    remat: str = "none"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        """Predicts what the model was trained to predict (noise, velocity or data).

        Args:
            x: [B, H, W, C] noisy images, H and W multiples of the patch size.
            t: [B] times in [0, 1], 0 data and 1 noise.
            labels: [B] int in [0, num_classes]; `num_classes` is the null class. Any other: NaN.

        Returns:
            [B, H, W, C] float32.

        Raises:
            InputError: fields of the model that cannot be; shapes that do not fit each other or the model.
        """
        check_fields(self)
        self._check_inputs(x, t, labels)
        rows, columns = x.shape[1] // self.patch_size, x.shape[2] // self.patch_size
        # A strided convolution as one product. The authors' Xavier start counts its fan-out once a pixel.
        others = self.width * (self.patch_size**2 - 1)
        embed = Dense(self.width, dtype=self.dtype, fused_features=others, name="patch_embedding")
        tokens = embed(patchify(x, self.patch_size))
        time = TimeEmbedding(self.width, self.n_timesteps, self.time_embedding, name="time_embedding")
        condition = time(t)
        condition += ClassEmbedding(self.num_classes, self.width, name="class_embedding")(labels)
        tokens, condition = self._place(tokens, condition[:, None], rows, columns)
        tokens = stack(
            self._blocks(rows, columns), self.depth, tokens, condition, scan=self.scan, remat=self.remat
        )
        scale, shift = modulation(condition, 2, self.dtype)
        tokens = modulate(tokens, scale, shift, self.dtype)[:, self.registers :]
        features = self.patch_size**2 * self.channels
        out = Dense(features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")
        patches = out(tokens).astype(jnp.float32)
        return unpatchify(patches, self.patch_size, x.shape[1], x.shape[2])

    def _place(
        self, tokens: jax.Array, condition: jax.Array, rows: int, columns: int
    ) -> tuple[jax.Array, jax.Array]:
        """Adds positions to tokens [B, N, D] (and to the condition [B, 1, D]), puts registers before them."""
        native = self.image_size // self.patch_size
        if self.positions == "learned":
            table = self.param("positions", SMALL_NORMAL, (native, native, self.width), jnp.float32)
            places = resize_positions(table, rows, columns).reshape(-1, self.width)
            table = self.param("condition_positions", SMALL_NORMAL, (native, native, self.width), jnp.float32)
            offsets = resize_positions(table, rows, columns).reshape(-1, self.width)
            if self.registers:
                shape = (self.registers, self.width)
                first = self.param("condition_registers", SMALL_NORMAL, shape, jnp.float32)
                offsets = jnp.concatenate([first, offsets])
            condition = condition + offsets
        else:
            table = POSITIONS[self.positions]
            counted = (self.native_size or self.image_size) // self.patch_size
            places = table(rows, columns, self.width, counted).reshape(-1, self.width)
        tokens = (tokens + places).astype(tokens.dtype)
        if self.registers:
            first = self.param("registers", SMALL_NORMAL, (self.registers, self.width), jnp.float32)
            first = jnp.broadcast_to(first.astype(tokens.dtype), (len(tokens), *first.shape))
            tokens = jnp.concatenate([first, tokens], axis=1)
        return tokens, condition

    def _blocks(self, rows: int, columns: int) -> nn.Module:
        """What the stack repeats."""
        block = functools.partial(
            ModulatedBlock,
            ffn_expansion=self.ffn_expansion,
            clamp=self.clamp,
            dtype=self.dtype,
            activation=self.activation,
            unit_gates=self.unit_gates,
        )
        return blocks_of(block, layer_mixers(self, (rows, columns)))

    def _check_inputs(self, x: jax.Array, t: jax.Array, labels: jax.Array) -> None:
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise InputError(f"images must be [B, H, W, {self.channels}] (channels last), got {x.shape}")
        if x.shape[1] % self.patch_size or x.shape[2] % self.patch_size or 0 in x.shape:
            raise InputError(
                f"images of {x.shape[1]} x {x.shape[2]} do not divide into patches of {self.patch_size}: "
                "crop or pad them to a multiple"
            )
        for name, value in (("t", t), ("labels", labels)):
            if value.shape != x.shape[:1]:
                raise InputError(f"{name} must be [B] = [{len(x)}], one value an image, got {value.shape}")
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise InputError(
                f"labels must be integers in [0, {self.num_classes}] ({self.num_classes} for no class), "
                f"got {labels.dtype}"
            )
