"""Diffusion transformer over video and images given a text: the papers' second model."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from pom_jax.errors import InputError
from pom_jax.models.mixers import clip_mixers, text_mixer
from pom_jax.models.polymorpher_checks import check_call, check_polymorpher
from pom_jax.nn.blocks import blocks_of, modulate, modulation, stack
from pom_jax.nn.dense import Dense
from pom_jax.nn.embeddings import SMALL_NORMAL, TimeEmbedding, resize_positions
from pom_jax.nn.text_block import Given, TextBlock, of_tokens
from pom_jax.nn.video_embeddings import (
    FRAME_POSITIONS,
    UNIT_NORMAL,
    ContextEmbedding,
    PooledText,
    WordEmbedding,
    cut_clips,
    frames_before,
    frames_of_patches,
    join_clips,
)
from pom_jax.ops.mesh import lay
from pom_jax.ops.rotary import grid_positions


class Text(NamedTuple):
    """A text for each clip.

    Attributes:
        tokens: [B, M] int, numbers of words with 0 for none (a model with a `vocabulary`), or [B, M, D]
            embeddings of an encoder.
        mask: [B, M], zero for tokens that are not there; a row of zeros is no text at all.
    """

    tokens: jax.Array
    mask: jax.Array


class States(NamedTuple):
    """What frames leave for those after them.

    Attributes:
        blocks: states of the mixers, a tree of arrays with a leading axis of layers; with `attention_every`
            a tuple of such trees, one for each layer of a period.
        frames: [n, B, H, W, frame_patch C] the last n frames of patches themselves (`past_frames`), the
            newest last.
    """

    blocks: Any
    frames: jax.Array


class Polymorpher(nn.Module):
    """Polymorpher for video given a text (v1, figure 3b; official `TextVideoDiH`); images are one frame.

    Patches in space and time become tokens; in each block they read the text, then each other, and are
    transformed; time modulates all of it. With `frame_causal` a token sees its own frame and those before: it
    trains on whole clips and generates frame after frame, from a state that does not grow. Any number of
    frames and any size run, whatever the model was made for. The output is zero at start.

    The state depends on the noise that the frames have: it holds features of noisy frames while they are
    denoised, and of clean ones once they are. To go on with the next frame, run the finished one at time 0
    and keep the state that this call returns; a model has to be trained with a time for each frame to read
    such a state (`diffusion.frame_times`).

    Attributes:
        frames: T of the clips the model is made for.
        frame_height, frame_width: H and W of a frame, in pixels or latent cells.
        channels: C of the clips.
        text_length: M, most tokens of a text.
        text_width: channels of the text's embeddings.
        patch_size: side of a patch.
        width: D, channels of a token.
        depth: L, number of blocks.
        frame_patch: frames of a patch.
        vocabulary: words of a table of embeddings that the model learns, the first standing for none; 0 where
            texts come embedded.
        frame_causal: a frame sees itself and those before; else all see all.
        mixer: of a layer, "pom", "attention", or "hybrid", which is both side by side, see `nn.Hybrid`. The
            text is read by PoM, unless all is attention.
        form, degree, expansion, gate_heads, groups: of PoM, see `nn.PoM`.
        reads: states that a token reads, of PoM with `frame_causal`, see `nn.PoM`.
        past_frames: n frames of patches before its own that a token sees around its place, see
            `nn.video_embeddings.ContextEmbedding`; needs `frame_causal`.
        rotary: rotary positions on the axes of time, rows and columns, of either mixer.
        phase_periods: periods, in patches, of a phase read on rows and columns (see `nn.Phase`); () for none.
        attention_every: k makes every k-th layer attention instead (layer i where k divides i + 1); 0 none.
        num_heads, head_width: of attention; heads of width 0 share the width D.
        window: radius of attention's windows on the grid of frames, rows and columns of patches; 0 for
            attention to all tokens. With `frame_causal` attention beside PoM, or in every k-th layer, is to
            the token's own frame, all of it or a window on rows and columns: it carries nothing from frame to
            frame. As the only mixer, without windows, it is to the frames before, too, and carries a cache.
        ffn_expansion: hidden width of the feed-forward networks as a multiple of the width.
        order: "text_first" (v1) or "self_first", see `nn.text_block.TextBlock`.
        time_token: puts the time's embedding before the text, which then is never empty (the authors' later
            code).
        pooled_text: adds the text's mean to the time's embedding, see `nn.video_embeddings.PooledText`: the
            model learns sooner what a text of few words asks for.
        positions: one of `FRAME_POSITIONS`, or "learned": a table of rows and columns, with none of frames.
        n_timesteps: the network sees t times this; also the base of its time frequencies.
        unit_gates: gates are kept as the authors' 1 + g, see `nn.blocks.ModulatedBlock`.
        clamp: bound on the absolute value of what a block returns, 0 for none.
        scan: blocks in a loop (quick to compile) or unrolled; the same parameters and numbers.
        remat: "none", "dots", "states" or "full", see `nn.blocks.stack`.
        dtype: compute dtype of products and residual stream, float32 if None. Parameters and output: float32.
    """

    frames: int
    frame_height: int
    frame_width: int
    channels: int
    text_length: int
    text_width: int
    patch_size: int
    width: int
    depth: int
    frame_patch: int = 1
    vocabulary: int = 0
    frame_causal: bool = False
    mixer: str = "pom"
    form: str = "product"
    degree: int = 2
    expansion: int = 2
    gate_heads: int = 1
    groups: int = 1
    reads: tuple[str, ...] = ("all",)
    past_frames: int = 0
    rotary: bool = False
    phase_periods: tuple[float, ...] = ()
    attention_every: int = 0
    num_heads: int = 1
    head_width: int = 0
    window: int = 0
    ffn_expansion: int = 4
    order: str = "text_first"
    time_token: bool = False
    pooled_text: bool = False
    positions: str = "sincos_phase"
    n_timesteps: int = 1000
    unit_gates: bool = False
    clamp: float = 0.0
    scan: bool = True
    remat: str = "none"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        text: Text,
        states: States | None = None,
        first: int | jax.Array = 0,
        drafts: int = 0,
    ) -> Any:
        """Predicts what the model was trained to predict (noise, velocity or data).

        Args:
            x: [B, T, H, W, C] noisy clips; T a multiple of `frame_patch`, H and W of `patch_size`.
            t: [B] times in [0, 1], 0 data and 1 noise, or [B, T / frame_patch], a time for each frame of
                patches.
            text: of each clip.
            states: what the frames before x left (`init_states`); needs `frame_causal`.
            first: number of the first frame of patches of x in its film, for positions.
            drafts: R; x is then a clip and R drafts of it one after another, [B, (1 + R) T, H, W, C], with
                a time for each frame. A frame of a draft sees itself, the text, and the frames of the clip
                before its own: clean ones, where the clip's times are 0 (teacher forcing).

        Returns:
            [B, T, H, W, C] float32; with `states` also the ones after these frames.

        Raises:
            InputError: fields of the model that cannot be; shapes that do not fit each other or the model.
        """
        check_polymorpher(self)
        check_call(self, x, t, text, states, drafts)
        grid = (
            x.shape[1] // self.frame_patch // (1 + drafts),
            x.shape[2] // self.patch_size,
            x.shape[3] // self.patch_size,
        )
        embed = Dense(self.width, dtype=self.dtype, name="patch_embedding")
        tokens = embed(cut_clips(x, self.frame_patch, self.patch_size))
        places = jnp.tile(self._places(grid, first), (1, 1 + drafts, 1))
        tokens = (tokens + places).astype(tokens.dtype)
        past = self._no_frames(len(x), x.shape[2:4]) if states is None else states.frames
        if self.past_frames:
            # Before a frame of a draft lie those of the clip.
            clip = frames_of_patches(x[:, : grid[0] * self.frame_patch], self.frame_patch)
            before, past = frames_before(clip, past)
            context = ContextEmbedding(self.width, self.patch_size, self.dtype, name="context")(before)
            tokens += jnp.tile(context, (1, 1 + drafts, 1))
        given = self._given(t.reshape(len(x), -1), text, grid, first, drafts)
        blocks = self._blocks(grid, drafts)
        carried = None if states is None else states.blocks
        found = stack(blocks, self.depth, tokens, given, states=carried, scan=self.scan, remat=self.remat)
        tokens, carried = (found, None) if states is None else found
        scale, shift = (of_tokens(each, tokens.shape[1]) for each in modulation(given.time, 2, self.dtype))
        tokens = modulate(tokens, scale, shift, self.dtype)
        features = self.frame_patch * self.patch_size**2 * self.channels
        out = Dense(features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")
        y = join_clips(out(tokens).astype(jnp.float32), self.frame_patch, self.patch_size, x.shape)
        return y if states is None else (y, States(carried, past))

    def init_states(self, batch: int, size: tuple[int, int] | None = None) -> States:
        """The states before any frame.

        Args:
            batch: B, number of clips.
            size: (H, W) of their frames; that of the training clips by default.

        Raises:
            InputError: a model that is not `frame_causal`.
        """
        if not self.frame_causal:
            raise InputError(
                "states are carried from frame to frame by a model with frame_causal=True; this one sees "
                "all frames at once"
            )
        size = size or (self.frame_height, self.frame_width)
        grid = (1, *(side // self.patch_size for side in size))
        mixers: list[Any] = [mixer(parent=None) for mixer in clip_mixers(self, grid)]
        each = tuple(mixer.init_state(batch, self.width) for mixer in mixers)
        one, turns = each[0] if len(each) == 1 else each, self.depth // len(each)
        blocks = jax.tree.map(lambda leaf: jnp.zeros((turns, *leaf.shape), leaf.dtype), one)
        return States(blocks, self._no_frames(batch, size))

    def _no_frames(self, batch: int, size: tuple[int, ...]) -> jax.Array:
        """[n, B, H, W, frame_patch C] of what is before the first frame."""
        return jnp.zeros((self.past_frames, batch, *size, self.frame_patch * self.channels))

    def _places(self, grid: tuple[int, int, int], first: int | jax.Array) -> jax.Array:
        """[1 or T, H, W, D] positions that are added to the tokens, as [1, N, D]."""
        native = (
            self.frames // self.frame_patch,
            self.frame_height // self.patch_size,
            self.frame_width // self.patch_size,
        )
        if self.positions == "learned":
            table = self.param("positions", UNIT_NORMAL, (*native[1:], self.width), jnp.float32)
            places = resize_positions(table, *grid[1:])[None]
        else:
            places = FRAME_POSITIONS[self.positions](grid, native, self.width, first)
        return jnp.broadcast_to(places, (*grid, self.width)).reshape(1, -1, self.width)

    def _given(
        self, t: jax.Array, text: Text, grid: tuple[int, int, int], first: int | jax.Array, drafts: int
    ) -> Given:
        time = TimeEmbedding(self.width, self.n_timesteps, name="time_embedding")(t.reshape(-1))
        time = time.reshape(*t.shape, self.width)
        tokens, mask = text.tokens, text.mask.astype(jnp.float32)
        if self.vocabulary:
            tokens = WordEmbedding(self.vocabulary, self.text_length, self.text_width, name="words")(tokens)
        # What stands where there is no word may be anything.
        tokens = jnp.where(mask[..., None] > 0, tokens, 0)
        if self.pooled_text:
            time += PooledText(self.width, name="pooled_text")(tokens, mask)[:, None]
        embed = Dense(self.width, dtype=self.dtype, kernel_init=SMALL_NORMAL, name="text_embedding")
        tokens = embed(tokens)[:, None]
        if self.time_token:
            shape = (*time.shape[:2], *tokens.shape[2:])
            tokens = jnp.concatenate(
                [time[:, :, None].astype(tokens.dtype), jnp.broadcast_to(tokens, shape)], 2
            )
            mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=1)
        positions = None
        if self.rotary or self.phase_periods:
            start = jnp.stack([jnp.asarray(first, jnp.float32), jnp.float32(0), jnp.float32(0)])
            positions = jnp.tile(jnp.asarray(grid_positions(*grid)) + start, (1 + drafts, 1))
        return Given(lay(time, "batch", None, None), lay(tokens, "batch", ...), mask, positions)

    def _blocks(self, grid: tuple[int, int, int], drafts: int) -> nn.Module:
        """What the stack repeats."""
        block = functools.partial(
            TextBlock,
            text_mixer=text_mixer(self),
            frame_tokens=math.prod(grid[1:]) if self.frame_causal else 0,
            drafts=drafts,
            order=self.order,
            ffn_expansion=self.ffn_expansion,
            clamp=self.clamp,
            dtype=self.dtype,
            unit_gates=self.unit_gates,
        )
        return blocks_of(block, clip_mixers(self, (grid[0] * (1 + drafts), *grid[1:])))
