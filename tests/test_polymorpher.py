"""The text-to-video network: streams, causality, texts, times, sizes, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from pom_jax import models
from pom_jax.errors import InputError
from pom_jax.models import Polymorpher, Text
from pom_jax.nn.video_embeddings import WordEmbedding, cut_windows, frames_before
from pom_jax.training import flops
from tests.layers import assert_close, gap, normal, quick_jit, uniform
from tests.mesh_agreement import awake

TINY = {"family": "polymorpher", "frames": 4, "frame_height": 4, "frame_width": 6, "channels": 2}
TINY |= {"text_length": 5, "text_width": 12, "patch_size": 2, "width": 24, "depth": 2, "ffn_expansion": 1}
CAUSAL: dict[str, dict[str, Any]] = {
    "product": {},
    "power": {"form": "power", "gate_heads": 4, "reads": ("all", "last"), "past_frames": 2},
    "reads": {"reads": ("own", "last", "past"), "phase_periods": (3.0,), "rotary": True, "vocabulary": 9},
    "patched": {"frame_patch": 2, "order": "self_first", "time_token": True, "positions": "learned"}
    | {"pooled_text": True, "past_frames": 1},
    "attention": {"mixer": "attention", "num_heads": 2, "rotary": True, "positions": "sincos_grid"}
    | {"past_frames": 2},
    "hybrid": {"mixer": "hybrid", "num_heads": 2, "window": 1, "reads": ("own", "last"), "rotary": True},
    "every": {"attention_every": 2, "num_heads": 2, "depth": 4},
}
BATCH = 2
CHUNKS = (1, 3)  # frames of patches


def build(**changes: Any) -> Polymorpher:
    model = models.build(TINY | changes)
    assert isinstance(model, Polymorpher)
    return model


def clips(frames: int, height: int = 4, width: int = 6) -> np.ndarray:
    return normal(1, BATCH, frames, height, width, 2)


def text_of(model: Polymorpher, seed: int = 2) -> Text:
    """Three words, and a text that is not there."""
    shape = (BATCH, model.text_length)
    words = np.random.default_rng(seed).integers(1, model.vocabulary or 2, shape)
    tokens = words if model.vocabulary else normal(seed, *shape, model.text_width)
    return Text(jnp.asarray(tokens), jnp.asarray([[1, 1, 1, 0, 0], [0] * 5]))


def frame_times(model: Polymorpher, frames: int) -> np.ndarray:
    return uniform(3, BATCH, frames // model.frame_patch)


def parameters(model: Polymorpher) -> Any:
    return awake(model, models.dummy_inputs(model))


@pytest.mark.parametrize("name", CAUSAL)
def test_streamed_is_parallel_and_the_past_does_not_know_the_future(name: str) -> None:
    """Ragged chunks from carried states are the whole clip, and what comes later changes no bit before."""
    model = build(frame_causal=True, **CAUSAL[name])
    patch, text, params = model.frame_patch, text_of(model), parameters(model)

    @quick_jit
    def run(x: Array, t: Array) -> Any:
        whole = model.apply({"params": params}, x, t, text)
        states, parts, at = model.init_states(BATCH), [], 0
        for count in CHUNKS:
            here = x[:, at * patch : (at + count) * patch]
            part: Any = model.apply({"params": params}, here, t[:, at : at + count], text, states, at)
            parts, states, at = [*parts, part[0]], part[1], at + count
        return whole, jnp.concatenate(parts, 1)

    x, t = clips(sum(CHUNKS) * patch), uniform(3, BATCH, sum(CHUNKS))
    whole, streamed = run(x, t)
    assert gap(streamed, whole) < 1e-5
    x[:, patch:] += 1
    t[:, 1:] /= 2
    for y, other in zip((whole, streamed), run(x, t), strict=True):
        np.testing.assert_array_equal(y[:, :patch], other[:, :patch])
        assert gap(other[:, patch:], y[:, patch:]) > 1e-2


@pytest.mark.parametrize("name", [name for name in CAUSAL if name != "every"])
def test_a_draft_reads_the_clean_frames_before_it_as_a_film_does(name: str) -> None:
    """Every frame of every draft is the one that is drawn after the clean frames before it, and no other."""
    drafts, count = 2, 3
    model = build(frame_causal=True, **CAUSAL[name])
    patch, text, params = model.frame_patch, text_of(model), parameters(model)
    clean, zero = clips(count * patch), np.zeros((BATCH, count), np.float32)
    noisy = normal(4, BATCH, drafts, count * patch, *clean.shape[2:])
    t = uniform(5, BATCH, drafts, count)

    @quick_jit
    def run(clean: Array, noisy: Array) -> Any:
        x = jnp.concatenate([clean, noisy.reshape(BATCH, -1, *clean.shape[2:])], 1)
        times = jnp.concatenate([zero, t.reshape(BATCH, -1)], 1)
        together: Any = model.apply({"params": params}, x, times, text, drafts=drafts)
        states, frames = model.init_states(BATCH), []
        for f in range(count):
            here = slice(f * patch, (f + 1) * patch)
            for draft in range(drafts):
                given = noisy[:, draft, here], t[:, draft, f : f + 1], text, states, f
                frames.append(model.apply({"params": params}, *given)[0])
            states = model.apply({"params": params}, clean[:, here], zero[:, :1], text, states, f)[1]
        alone = jnp.stack(frames, 1).reshape(BATCH, count, drafts, patch, *clean.shape[2:])
        return together[:, clean.shape[1] :].reshape(noisy.shape), alone.swapaxes(1, 2).reshape(noisy.shape)

    together, alone = run(clean, noisy)
    assert gap(together, alone) < 1e-5
    clean[:, -patch:] += 1  # no draft sees the last clean frame
    noisy[:, 0] += 1  # nor another draft
    other = run(clean, noisy)[0]
    np.testing.assert_array_equal(other[:, 1], together[:, 1])
    clean[:, :patch] += 1  # all but the first frame see the first
    change = np.abs(np.asarray(run(clean, noisy)[0] - together)[:, 1]).max((0, 2, 3, 4))
    np.testing.assert_array_equal(change[:patch], 0)
    assert change[patch:].min() > 1e-3


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_the_window_of_a_patch_is_the_frame_around_its_place(patch: int) -> None:
    frames = normal(1, 2, 3, 2 * patch, 4 * patch, 5)
    margin = patch // 2
    padded = np.pad(frames, ((0, 0), (0, 0), (margin, margin), (margin, margin), (0, 0)))
    found = np.asarray(cut_windows(jnp.asarray(frames), patch)).reshape(2, 3, 2, 4, -1)
    for row, column in np.ndindex(2, 4):
        rows, columns = (slice(i * patch, i * patch + patch + 2 * margin) for i in (row, column))
        window = padded[:, :, rows, columns].reshape(2, 3, -1)
        np.testing.assert_array_equal(found[:, :, row, column], window)


def test_frames_before_are_the_newest_last_and_go_on_after_the_clip() -> None:
    clip = np.arange(2 * 4).reshape(2, 4, 1, 1, 1).astype(np.float32)
    past = jnp.full((2, 2, 1, 1, 1), -1.0)
    before, last = frames_before(jnp.asarray(clip), past)
    np.testing.assert_array_equal(before[0, :, 0, 0], [[-1, -1], [-1, 0], [0, 1], [1, 2]])
    np.testing.assert_array_equal(last[:, :, 0, 0, 0], [[2, 6], [3, 7]])


@pytest.mark.parametrize("name", ["reads", "every"])
def test_a_frame_has_no_slope_by_later_ones(name: str) -> None:
    model = build(frame_causal=True, **CAUSAL[name])
    given = frame_times(model, 4), text_of(model)
    params = parameters(model)

    def second(x: Array) -> Array:
        return jnp.asarray(model.apply({"params": params}, x, *given))[:, 1].sum()

    slope = np.asarray(quick_jit(jax.grad(second))(clips(4)))
    assert np.abs(slope[:, :2]).max(axis=(2, 3, 4)).min() > 1e-3
    np.testing.assert_array_equal(slope[:, 2:], 0)


def test_states_are_as_large_after_any_number_of_frames() -> None:
    for name, grows in (("reads", False), ("hybrid", False), ("every", False), ("attention", True)):
        each = build(frame_causal=True, **CAUSAL[name])
        sizes = []
        for frames in (1, 5):
            inputs = clips(frames), frame_times(each, frames), text_of(each), each.init_states(BATCH)
            after = jax.eval_shape(each.apply, {"params": parameters(each)}, *inputs)
            sizes.append(sum(leaf.size for leaf in jax.tree.leaves(after[1])))  # pyrefly: ignore[bad-index]
        assert (sizes[1] > sizes[0]) == grows


def test_a_text_that_is_not_there_is_the_output_bias_whatever_it_holds() -> None:
    model, x, t = build(), clips(4), np.array([0.3, 0.9], np.float32)
    params = parameters(model)
    mixer = params["blocks"]["text_mixer"]
    out = mixer["out"] | {"kernel": jnp.zeros_like(mixer["out"]["kernel"])}
    deaf = params | {"blocks": params["blocks"] | {"text_mixer": mixer | {"out": out}}}
    run = quick_jit(lambda p, *text: model.apply({"params": p}, x, t, Text(*text)))
    tokens, none, some = normal(2, BATCH, 5, 12), np.zeros((BATCH, 5)), np.ones((BATCH, 5))
    dropped = run(params, tokens, none)
    np.testing.assert_array_equal(dropped, run(params, np.full_like(tokens, np.nan), none))
    assert_close(dropped, run(deaf, tokens, some), 1e-5)
    assert gap(run(params, 0 * tokens, some), dropped) > 1e-3, "an empty string's embedding is another thing"
    assert gap(run(params, tokens, some), dropped) > 1e-3
    # Of tokens that are there, what stands beside them does not count.
    three = np.concatenate([some[:, :3], none[:, 3:]], 1)
    other = np.concatenate([tokens[:, :3], 7 + tokens[:, 3:]], 1)
    np.testing.assert_array_equal(run(params, tokens, three), run(params, other, three))


def test_a_pooled_text_acts_as_time_does_and_only_by_the_words_that_are_there() -> None:
    model, x, t = build(pooled_text=True), clips(4), np.array([0.3, 0.9], np.float32)
    params = parameters(model)
    out = params["blocks"]["text_mixer"]["out"]
    params["blocks"]["text_mixer"]["out"] = out | {"kernel": jnp.zeros_like(out["kernel"])}
    run = quick_jit(lambda *text: model.apply({"params": params}, x, t, Text(*text)))
    tokens, mask = normal(2, BATCH, 5, 12), np.array([[1, 1, 1, 0, 0], [0] * 5])
    found = run(tokens, mask)
    other = tokens.copy()
    other[0, 3:] = np.nan
    np.testing.assert_array_equal(run(other, mask), found)
    np.testing.assert_array_equal(run(tokens[:, [2, 0, 1, 3, 4]], mask)[1], found[1])
    assert_close(run(tokens[:, [2, 0, 1, 3, 4]], mask), found, 1e-5)  # a mean: places are in the words
    assert_close(run(tokens[:, :3], mask[:, :3]), found, 1e-5)  # of as many as there are
    other[0, 1] += 1
    changed = np.abs(np.asarray(run(other, mask) - found)).max((1, 2, 3, 4))
    assert changed[0] > 1e-3
    assert changed[1] == 0


@pytest.mark.parametrize("name", ["patched", "attention"])
def test_one_time_for_all_frames_is_the_same_time_for_each(name: str) -> None:
    model = build(frame_causal=True, **CAUSAL[name])
    t, text, params = np.array([0.3, 0.9], np.float32), text_of(model), parameters(model)
    run = quick_jit(lambda t: model.apply({"params": params}, clips(4), t, text))
    each = np.repeat(t[:, None], 4 // model.frame_patch, 1)
    assert_close(run(each), run(t), 5e-6)
    assert gap(run(each * [[1.0] * (each.shape[1] - 1) + [0.5]]), run(t)) > 1e-4


def test_loop_and_recomputation_change_neither_values_nor_slopes() -> None:
    made = build(clamp=50.0)
    inputs, params = (clips(4), np.array([0.3, 0.9], np.float32), text_of(made)), parameters(made)

    def slopes(**execution: Any) -> Any:
        model = made.clone(**execution)

        def loss(params: Any) -> Array:
            return jnp.mean(jnp.sin(jnp.asarray(model.apply({"params": params}, *inputs))))

        return quick_jit(jax.value_and_grad(loss))(params)

    looped = slopes()
    for path, leaf in jax.tree.leaves_with_path(looped):
        assert np.abs(leaf).max() > 0, path  # every parameter matters
    least = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(looped))
    for scan, remat in ((False, "dots"), (True, "states"), (True, "full")):
        assert_close(slopes(scan=scan, remat=remat), looped, 2e-5, 1e-3 * least)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("size", "count"), [("S/2", 74_670_080), ("B/2", 297_385_856), ("XL/2", 1_050_634_496)]
)
def test_published_sizes_to_the_parameter(size: str, count: int) -> None:
    data = {"frames": 20, "frame_height": 16, "frame_width": 30, "channels": 16, "text_length": 64}
    fields = TINY | data | {"text_width": 1024} | models.preset(f"Polymorpher-{size}")
    assert models.count_parameters(models.build(fields)) == count


@pytest.mark.parametrize("name", models.VIDEO_NAMES)
def test_every_preset_builds(name: str) -> None:
    model = build(**models.preset(name) | {"frame_height": 8, "frame_width": 8})
    assert (model.mixer == "attention") == name.startswith("TextVideoDiT")
    assert name.endswith(f"/{model.patch_size}")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"form": "power", "gate_heads": 4, "time_token": True, "frame_patch": 2},
        {"mixer": "attention", "num_heads": 2, "order": "self_first", "pooled_text": True},
        {"mixer": "hybrid", "num_heads": 2, "rotary": True, "phase_periods": (3.0,)},
    ],
)
def test_frames_that_all_see_each_other_may_have_times_of_their_own(changes: dict[str, Any]) -> None:
    """Equal ones are the one of the clip; with another time a frame is another to all."""
    model = build(**changes)
    x, text, params = clips(4), text_of(model), parameters(model)
    one = np.array([0.3, 0.9], np.float32)
    equal = np.repeat(one[:, None], 4 // model.frame_patch, axis=1)
    apply = quick_jit(lambda t: model.apply({"params": params}, x, t, text))
    y = apply(one)
    assert_close(apply(equal), y, 2e-6)
    equal[:, -1] = 0.5
    assert all(gap(apply(equal)[:, frame], y[:, frame]) > 1e-3 for frame in range(4))


def test_one_frame_is_a_picture_for_a_causal_model_too() -> None:
    """Of a picture a frame sees all there is, so both kinds of model compute the same."""
    one = build(frames=1)
    inputs = clips(1), np.array([0.3, 0.9], np.float32), text_of(one)
    models_, params = (one, one.clone(frame_causal=True)), parameters(one)
    y, other = quick_jit(lambda x: [m.apply({"params": params}, x, *inputs[1:]) for m in models_])(inputs[0])
    assert y.shape == (BATCH, 1, 4, 6, 2)
    assert_close(other, y, 5e-6)


def test_other_sizes_and_lengths_run_with_the_same_parameters() -> None:
    model = build(frame_causal=True, **CAUSAL["patched"])
    assert models.sample_shape(model) == (4, 4, 6, 2)
    x = clips(10, 8, 2)
    y = quick_jit(model.apply)({"params": parameters(model)}, x, frame_times(model, 10), text_of(model))
    assert y.shape == x.shape
    assert np.isfinite(y).all()


@pytest.mark.parametrize("name", ["reads", "attention"])
def test_output_is_exactly_zero_at_the_start(name: str) -> None:
    model = build(frame_causal=True, **CAUSAL[name])
    inputs = clips(4), np.array([0.3, 0.9], np.float32), text_of(model)

    @quick_jit
    def start(key: Array) -> Any:
        params = models.init(model, key)
        return params, model.apply({"params": params}, *inputs)

    params, y = start(jax.random.key(0, impl="rbg"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(y, np.zeros((BATCH, 4, 4, 6, 2)))


@pytest.mark.parametrize(
    "changes",
    [
        {"frame_causal": True, "reads": ("own", "last"), "phase_periods": (4.0,), "time_token": True},
        {"frame_causal": True, "pooled_text": True, "text_width": 2048},
        {"frame_causal": True, "form": "power", "gate_heads": 8, "groups": 2},
        {"mixer": "attention", "num_heads": 8},
        {"frame_causal": True, "mixer": "attention", "num_heads": 8, "drafts": 2},
        {"frame_causal": True, "reads": ("own", "last"), "past_frames": 1, "drafts": 2},
        {"frame_causal": True, "mixer": "hybrid", "num_heads": 8, "drafts": 2},
        {"attention_every": 2, "num_heads": 8, "window": 4, "depth": 2},
        {"frame_causal": True, "attention_every": 2, "num_heads": 8, "window": 4, "depth": 2},
    ],
)
def test_flops_are_those_that_the_compiler_counts(changes: dict[str, Any]) -> None:
    drafts = changes.get("drafts", 0)
    changes = {name: value for name, value in changes.items() if name != "drafts"}
    data = {"frames": 4, "frame_height": 8, "frame_width": 8, "channels": 4, "text_length": 24}
    fields = models.preset("Polymorpher-S/2") | TINY | data | {"frame_patch": 2, "text_width": 64}
    fields |= {"width": 512, "depth": 1, "scan": False, "ffn_expansion": 3} | changes
    model = models.build(fields)
    shapes = jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))
    x, t, text = models.dummy_inputs(model)
    times = 2 if fields["frame_causal"] else 1
    t = jnp.zeros((1, times * (1 + drafts))) if times > 1 else t
    x = jnp.tile(x, (1, 1 + drafts, 1, 1, 1))
    forward = quick_jit(lambda p, *a: model.apply({"params": p}, *a, drafts=drafts))
    costs: Any = forward.lower(shapes, x, t, text).compile().cost_analysis()
    found = flops.forward_flops(fields, times, drafts)
    assert 0.97 < found / costs["flops"] < 1.0
    default = {name: value for name, value in fields.items() if name != "positions"}
    assert flops.forward_flops(default, times, drafts) == found, "a field that is not there has its default"


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frame_patch": 3}, "frames=4 .*frame_patch=3"),
        ({"patch_size": 3}, "frame_height=4 .*patch_size=3"),
        ({"frame_width": 7}, "frame_width=7 .*patch_size=2"),
        ({"mixer": "attention", "num_heads": 5}, "width=24 .*num_heads=5"),
        ({"width": 16, "expansion": 1, "rotary": True}, r"expansion \* width=16 .*three axes=6"),
        ({"width": 20}, "width=20 must be a multiple of 8 for positions='sincos_phase'"),
        ({"width": 18, "positions": "sincos_grid"}, "width=18 must be a multiple of 4"),
        ({"mixer": "attention", "phase_periods": (4.0,)}, r"phase_periods=\(4.0,\) is of PoM"),
        ({"reads": ("future",)}, "reads=.* must be some of"),
        ({"reads": ()}, r"reads=\(\) must be some of"),
        ({"reads": ("own", "own"), "frame_causal": True}, "each once"),
        ({"reads": ("own",)}, "frame_causal=True: set it"),
        ({"reads": ("own",), "frame_causal": True, "mixer": "attention"}, "of PoM with"),
        ({"vocabulary": 1}, "vocabulary=1 has no word but none"),
        ({"past_frames": 1}, "past_frames=1 are frames before .*frame_causal=True"),
        ({"past_frames": -1}, "past_frames=-1 must be at least 0"),
        ({"past_frames": 4, "frame_causal": True}, "past_frames=4 must be less than the 4 frames"),
        ({"order": "text_last"}, "text_first"),
        ({"positions": "sincos"}, "sincos_phase"),
        ({"mixer": "mixed"}, "pom, attention, hybrid"),
        ({"mixer": "hybrid", "num_heads": 5}, "width=24 .*num_heads=5"),
        ({"mixer": "hybrid", "groups": 2}, "belong to the power form"),
        ({"attention_every": 2, "num_heads": 5}, "width=24 .*num_heads=5"),
        ({"attention_every": 1}, "attention_every=1 .* model.mixer='attention'"),
        ({"attention_every": 3}, "depth=2 .*attention_every=3"),
        ({"attention_every": 2, "mixer": "attention"}, "attention_every=2 with .*attention"),
        ({"window": 2}, "window=2 .* no layer has any"),
        ({"mixer": "attention", "num_heads": 6, "rotary": True}, "heads of 4 channels .* at least 6"),
        ({"mixer": "hybrid", "head_width": 5, "rotary": True}, "heads of 5 channels .* model.head_width"),
        ({"mixer": "hybrid", "window": -1}, "window=-1 must be at least 0"),
        ({"mixer": "attention", "window": 1, "frame_causal": True}, "window=1 .* the frames before; set"),
        ({"form": "power", "groups": 7}, "width=24 .*groups=7"),
        ({"form": "power", "gate_heads": 7}, r"expansion \* width=48 .*gate_heads=7"),
        ({"groups": 2}, "belong to the power form"),
        ({"width": 23, "positions": "learned"}, "width=23 must be even"),
        ({"head_width": 8}, "head_width=8 is of attention"),
        ({"remat": "dot"}, "dots"),
        ({"depth": 0}, "at least 1"),
        ({"registers": 4}, "registers"),
        ({"family": "polymorph"}, "polymorpher"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        models.build(TINY | changes)


CLIP, ONE_TIME = (2, 4, 4, 6, 2), (2,)
TOKENS, MASK = np.zeros((2, 5, 12)), np.ones((2, 5))


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("changes", "x", "t", "text", "words"),
    [
        ({}, (2, 4, 6, 2), ONE_TIME, (TOKENS, MASK), r"\[B, T, H, W, 2\]"),
        ({}, (2, 4, 4, 6, 3), ONE_TIME, (TOKENS, MASK), "channels last"),
        ({}, (2, 0, 4, 6, 2), ONE_TIME, (TOKENS, MASK), "channels last"),
        ({"frame_patch": 2}, (2, 3, 4, 6, 2), ONE_TIME, (TOKENS, MASK), "3 frames do not divide"),
        ({}, (2, 4, 5, 6, 2), ONE_TIME, (TOKENS, MASK), "5 rows do not divide into patches of 2; crop"),
        ({}, (2, 4, 4, 7, 2), ONE_TIME, (TOKENS, MASK), "7 columns do not divide"),
        ({}, CLIP, (3,), (TOKENS, MASK), r"t must be \[B\] = \[2\].* got \(3,\)"),
        ({}, CLIP, (2, 3), (TOKENS, MASK), r"\[2, 4\], one for each frame"),
        ({}, CLIP, ONE_TIME, (TOKENS[0], MASK), r"\[B, M, 12\] embeddings of the 2 texts"),
        ({}, CLIP, ONE_TIME, (TOKENS[..., :3], MASK), r"got \(2, 5, 3\)"),
        ({}, CLIP, ONE_TIME, (TOKENS, MASK[:1]), r"text.mask must be \[B, M\] = \(2, 5\)"),
        ({"vocabulary": 9}, CLIP, ONE_TIME, (MASK, MASK), "integers, words by number; got float"),
        ({"vocabulary": 9}, CLIP, ONE_TIME, (TOKENS.astype(int), MASK), "integers, words by number"),
        (
            {"vocabulary": 9},
            CLIP,
            ONE_TIME,
            (np.ones((2, 6), int), np.ones((2, 6))),
            "a text of 6 tokens is longer than text_length = 5",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_compiles(
    changes: dict[str, Any], x: Any, t: Any, text: Any, words: str
) -> None:
    model = build(**changes)
    with pytest.raises(InputError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros(x, np.float32), np.zeros(t), Text(*text))


def test_a_text_is_no_plain_tuple() -> None:
    model = build()
    with pytest.raises(InputError, match=r"text is a tuple: give models.Text\(tokens, mask\)"):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros(CLIP), np.zeros(2), (TOKENS, MASK))


def test_states_need_a_causal_model() -> None:
    model = build()
    with pytest.raises(InputError, match="a model with frame_causal=True"):
        model.init_states(2)
    states = build(frame_causal=True).init_states(2)
    inputs = np.zeros(CLIP, np.float32), np.zeros(2), Text(jnp.asarray(TOKENS), jnp.asarray(MASK)), states
    with pytest.raises(InputError, match="they need frame_causal=True"):
        jax.eval_shape(model.init, jax.random.key(0), *inputs)
    context = build(frame_causal=True, past_frames=1)
    inputs = *inputs[:3], context.init_states(2, (8, 6))
    with pytest.raises(InputError, match=r"\(1, 2, 8, 6, 2\), .*init_states\(batch, \(height, width\)\)"):
        jax.eval_shape(context.init, jax.random.key(0), *inputs)


@pytest.mark.parametrize(
    ("causal", "drafts", "t", "words"),
    [
        (True, 2, (2, 4), r"drafts=2 needs x of \(1 \+ drafts\) T frames of patches.* got 4 frames"),
        (True, -1, (2, 4), "drafts=-1 needs"),
        (True, 1, (2,), r"got 4 frames, t \(2,\)"),
        (False, 1, (2, 4), "frame_causal=True"),
    ],
)
def test_drafts_that_do_not_fit_are_refused(causal: bool, drafts: int, t: Any, words: str) -> None:
    model = build(frame_causal=causal)
    inputs = np.zeros(CLIP, np.float32), np.zeros(t), Text(jnp.asarray(TOKENS), jnp.asarray(MASK))
    with pytest.raises(InputError, match=words):
        jax.eval_shape(lambda key: model.init(key, *inputs, drafts=drafts), jax.random.key(0))


def test_a_word_that_is_none_is_not_taken_for_another() -> None:
    words = WordEmbedding(9, 3, 4)
    params = {"table": normal(1, 9, 4), "places": normal(2, 3, 4)}
    table = jax.tree.map(jnp.asarray, params)
    found = np.asarray(words.apply({"params": table}, jnp.asarray([[1, 9, -1]])))
    np.testing.assert_array_equal(np.isnan(found).any(-1), [[False, True, True]])
    np.testing.assert_array_equal(found[0, 0], params["table"][1] + params["places"][0])
