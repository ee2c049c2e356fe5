"""Training on clips: times of frames, what counts in the loss, dropped texts, and a run on real digits."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from configs import moving_digits as recipe
from pom_jax import models
from pom_jax.data import moving_digits, open_source
from pom_jax.data.sources import heldout_split
from pom_jax.diffusion import (
    FlowPath,
    FrameTimes,
    TimeSampling,
    diffusion_loss,
    draw_times,
    validation_loss,
)
from pom_jax.diffusion.schedules import time_grid
from pom_jax.errors import InputError
from pom_jax.models import Text
from pom_jax.training import conditions, loop, metrics
from pom_jax.training.estimate import estimate
from pom_jax.training.memory import of_program
from pom_jax.training.objective import choose_frames, make_objective, mean_loss
from pom_jax.training.preview import Preview, shown
from pom_jax.training.run import make_run
from pom_jax.training.start import find_start
from tests.mesh_agreement import awake

CLIPS, FRAMES = 500, 8
ROOT = Path(__file__).parent.parent
ON_TWO = """
import json, sys
from pathlib import Path
import jax
from pom_jax.data.pipeline import batches
from pom_jax.training import sharding
from pom_jax.training.run import make_run
from tests.test_video_training import tiny

found = []
for devices in jax.devices()[:1], jax.devices():
    run = make_run(tiny(Path(sys.argv[1])), devices)
    with jax.set_mesh(run.mesh):
        state = run.fresh_state()
        batch = jax.device_put(next(batches(run.train, 4, 0)), sharding.batch_sharding(run.mesh))
        found.append([float(value) for value in jax.jit(run.step)(state, batch)[1].values()])
print(json.dumps(found))
"""


def draw(
    kind: str, given: int = 0, times: TimeSampling | None = None, drafts: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    drawn = draw_times(jax.random.key(0), CLIPS, FRAMES, times, FrameTimes(kind, given, drafts))
    return np.asarray(drawn.t), np.asarray(drawn.weight)


def test_frames_share_a_time_or_each_has_its_own() -> None:
    t, weight = draw("shared", times=TimeSampling())
    assert t.shape == weight.shape == (CLIPS, 1)
    assert (weight == 1).all()
    t, weight = draw("independent", times=TimeSampling())
    assert t.shape == weight.shape == (CLIPS, FRAMES)
    assert (weight == 1).all()
    assert abs(np.corrcoef(t[:, 0], t[:, 1])[0, 1]) < 0.15
    assert abs(t.mean() - 0.5) < 0.02


@pytest.mark.parametrize("given", [0, 2])
def test_a_clean_past_ends_anywhere_and_does_not_count(given: int) -> None:
    t, weight = draw("clean_past", given, TimeSampling())
    clean = weight == 0
    assert (t[clean] == 0).all()
    assert (t[~clean] > 0).all()
    finished = clean.sum(1)
    assert (np.sort(clean, 1)[:, ::-1] == clean).all(), "clean frames come first"
    assert finished.min() == given
    assert finished.max() == FRAMES - 1, "something is always learned"
    counts = np.bincount(finished, minlength=FRAMES)[given:]
    assert counts.min() > 0.7 * counts.mean(), "every number of clean frames is as likely"


@pytest.mark.parametrize("times", [TimeSampling(), None])
def test_drafts_follow_a_clean_clip_and_count_from_the_first_that_is_not_given(
    times: TimeSampling | None,
) -> None:
    t, weight = draw("teacher_forcing", 2, times, drafts=3)
    assert t.shape == weight.shape == (CLIPS, 4 * FRAMES)
    assert (t[:, :FRAMES] == 0).all()
    assert (t[:, FRAMES:] > 0).all()
    counts = np.tile(np.arange(FRAMES) >= 2, 4) & (np.arange(4 * FRAMES) >= FRAMES)
    np.testing.assert_array_equal(weight, np.tile(counts, (CLIPS, 1)))
    drafts = t[:, FRAMES:].reshape(CLIPS, 3, FRAMES)
    assert abs(np.corrcoef(drafts[:, 0, 0], drafts[:, 1, 0])[0, 1]) < 0.15
    assert abs(drafts.mean() - 0.5) < 0.02


def test_stills_are_the_first_frame_of_each_clip_and_others_and_none_twice() -> None:
    x = jnp.arange(50 * 8 * 2.0).reshape(50, 8, 2)  # two frames a patch
    found = np.asarray(choose_frames(jax.random.key(0), x, 4, 3)).reshape(50, 3, 2, 2)
    places = found[:, :, 0, 0].astype(int) // 2 % 8 // 2
    assert all(len(set(row)) == 3 for row in places.tolist())
    assert (places[:, 0] == 0).all(), "what a film begins with"
    assert np.bincount(places[:, 1:].ravel(), minlength=4)[1:].min() > 20, "every other frame is as likely"
    for clip, row in enumerate(places):
        np.testing.assert_array_equal(found[clip], x[clip].reshape(4, 2, 2)[row])


@pytest.mark.parametrize("kind", ["shared", "independent", "teacher_forcing"])
def test_a_batch_is_learned_as_some_films_and_stills_of_all(kind: str, folder: Path) -> None:
    """The losses are those of films with their texts, then those of stills; padding does not count."""
    config = recipe.get_config()
    config.data.dir = str(folder)
    config.model.update({"width": 16, "depth": 1})
    config.diffusion.update({"frame_times": kind, "film_every": 2, "still_frames": 3})
    config.diffusion.drafts = 1 if kind == "teacher_forcing" else 0
    model = models.build(config.model, config.dtype)
    params = awake(model, models.dummy_inputs(model))
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (4, 8, 16, 16, 1))
    text = Text(jax.random.randint(keys[1], (4, 4), 1, 17), jnp.ones((4, 4)))
    objective = make_objective(config, model)

    @jax.jit
    def run(x: jax.Array, text: Text, weights: jax.Array) -> Any:
        return objective(params, keys[2], x, text, weights)

    weights = jnp.array([1.0, 1, 0, 1])
    films, stills = run(x, text, weights)
    assert films.weight.shape == (2, {"shared": 1, "independent": 8, "teacher_forcing": 16}[kind])
    np.testing.assert_array_equal(
        films.weight.sum(1), [8, 0]
    )  # films are clips 0 and 2, which does not count
    np.testing.assert_array_equal(stills.weight[:, 0], np.repeat(weights, 3))
    total = sum(float((part.per_example * part.weight).sum()) for part in (films, stills))
    np.testing.assert_allclose(mean_loss((films, stills)), total / (8 + 9), rtol=1e-6)

    other_films, other_stills = run(x, text._replace(tokens=text.tokens.at[1].set(3)), weights)
    np.testing.assert_array_equal(other_films.per_example, films.per_example)  # clip 1 is no film
    heldout = jax.jit(make_objective(config, model, heldout=True))(params, keys[2], x, text, weights)
    assert [len(part.weight) for part in heldout] == [4, 12], "held out, every clip is a film"

    moved = np.flatnonzero(np.abs(np.asarray(other_stills.per_example - stills.per_example)) > 1e-6)
    assert set(moved) == {3, 4, 5}


def test_a_step_with_films_and_stills_costs_and_holds_what_is_told_before(folder: Path) -> None:
    config = tiny(folder)
    config.data.batch_size = 16
    config.diffusion.update({"film_every": 8, "still_frames": 4})  # most of the work
    config.model.update({"width": 64, "depth": 3, "scan": False})
    config.optimizer.name = "adamw"  # operations are counted without the optimiser's
    run = make_run(config)
    with jax.set_mesh(run.mesh):
        compiled, _ = run.compiled_step()
        told = estimate(run)
    assert 0.9 < run.flops / compiled.cost_analysis()["flops"] < 1.02
    needed = of_program(compiled, run.state, run.batch)
    assert 0.8 < told.work / needed.work < 1.25, (told, needed)


def test_two_devices_learn_the_films_and_stills_of_one(folder: Path) -> None:
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    found = subprocess.run(
        [sys.executable, "-c", ON_TWO, folder],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        check=True,
        capture_output=True,
        text=True,
    )
    one, two = json.loads(found.stdout.splitlines()[-1])
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_validation_times_are_stratified_over_all_frames() -> None:
    t, _ = draw("independent")
    np.testing.assert_allclose(np.sort(t.ravel()), (np.arange(t.size) + 0.5) / t.size, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "numbers", "words"),
    [
        ("each", {}, "diffusion.frame_times"),
        ("shared", {"given": 1}, "given_frames=1"),
        ("clean_past", {"given": -1}, "given_frames=-1"),
        ("teacher_forcing", {}, "drafts=0 must be at least 1"),
        ("independent", {"drafts": 2}, "drafts=2 .*and 0 without"),
        ("independent", {"still_frames": -1}, "still_frames=-1 at least 0"),
        ("shared", {"film_every": 2}, "film_every above 1 the other clips are learned as stills alone"),
        ("shared", {"film_every": 0, "still_frames": 1}, "film_every=0 must be at least 1"),
    ],
)
def test_wrong_times_of_frames_are_explained(kind: str, numbers: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        FrameTimes(kind, **numbers)


def test_given_frames_leave_something_to_learn() -> None:
    with pytest.raises(InputError, match="nothing to learn"):
        draw("clean_past", FRAMES, TimeSampling())


@pytest.mark.parametrize("loss", [diffusion_loss, validation_loss])
def test_the_loss_is_that_of_each_frame_at_its_time(loss) -> None:
    """A network that knows the noise is right in the frames that it is told the time of; others cost it."""
    x = jax.random.normal(jax.random.key(1), (3, 4, 2, 2, 1))
    seen = []

    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        seen.append(t)
        frames = jnp.repeat(t, 2, axis=1)[..., None, None, None]  # two frames have one time
        return jnp.where(frames > 0, (x_t - x) / jnp.where(frames > 0, frames, 1), 7.0)

    how = FrameTimes("clean_past", 1)
    losses = loss(predict, jax.random.key(2), x, path=FlowPath(), frames=how, count=2)
    assert seen[0].shape == (3, 2)
    assert (np.asarray(losses.weight) == [[0, 1]] * 3).all()
    np.testing.assert_allclose(losses.per_example[:, 1], 0, atol=1e-9)
    assert (losses.per_example[:, 0] > 1).all()
    np.testing.assert_allclose(mean_loss([losses]), 0, atol=1e-9)


@pytest.mark.parametrize("loss", [diffusion_loss, validation_loss])
def test_the_loss_of_drafts_is_theirs_alone(loss) -> None:
    """The network is shown the clip as it is, then drafts, each at its times; what it says of the clip and of
    given frames does not count."""
    x = jax.random.normal(jax.random.key(1), (3, 4, 2, 2, 1))
    seen = []

    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        seen.append(x_t)
        frames = jnp.repeat(t, 2, axis=1)[..., None, None, None]
        known = (x_t - jnp.tile(x, (1, 3, 1, 1, 1))) / jnp.where(frames > 0, frames, 1)
        return jnp.where(jnp.arange(12)[:, None, None, None] % 4 < 2, 7.0, known)

    how = FrameTimes("teacher_forcing", given=1, drafts=2)
    losses = loss(predict, jax.random.key(2), x, path=FlowPath(), frames=how, count=2)
    assert seen[0].shape == (3, 12, 2, 2, 1)
    np.testing.assert_array_equal(seen[0][:, :4], x)
    assert np.abs(np.asarray(seen[0][:, 4:8] - seen[0][:, 8:])).min() > 0
    assert (np.asarray(losses.weight) == [[0, 0, 0, 1, 0, 1]] * 3).all()
    np.testing.assert_allclose(mean_loss([losses]), 0, atol=1e-9)


def test_the_network_is_told_one_time_of_a_shared_one() -> None:
    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        assert t.shape == (3,)
        return x_t

    x = jnp.ones((3, 4, 2, 2, 1))
    drawn = diffusion_loss(predict, jax.random.key(2), x, path=FlowPath(), frames=FrameTimes(), count=2)
    assert drawn.per_example.shape == (3, 1)


def test_texts_are_dropped_whole() -> None:
    model = {"family": "polymorpher"}
    batch = {"text": jnp.array([[3, 1, 0]] * 2000)}
    text = conditions.condition(model, batch)
    np.testing.assert_array_equal(text.mask[0], [1, 1, 0])
    dropped = conditions.drop(model, text, jax.random.key(0), 0.1)
    kept = dropped.mask.sum(1)
    assert set(np.unique(kept)) == {0, 2}
    assert abs((kept == 0).mean() - 0.1) < 0.02
    assert (conditions.none(model, text).mask == 0).all()
    embedded = {"text": jnp.ones((1, 3, 4), jnp.float16), "text_mask": jnp.array([[1, 1, 0]], jnp.uint8)}
    found = conditions.condition(model, embedded)
    assert isinstance(found, Text)
    assert found.tokens.dtype == found.mask.dtype == jnp.float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "moving-digits"
    moving_digits.prepare(folder, clips=40)
    return folder


def tiny(folder: Path) -> ConfigDict:
    config = recipe.get_config("quick")
    config.data.update({"dir": str(folder), "batch_size": 4})
    config.model.update({"width": 16, "depth": 2})
    config.diffusion.film_every = 2
    config.train.update(
        {"steps": 4, "eval_every": 2, "eval_size": 8, "sample_every": 4, "checkpoint_every": 2}
    )
    config.sampling.update({"steps": 2, "num": 3})
    return config


def test_a_run_on_clips(folder: Path, tmp_path: Path) -> None:
    config, drawn = tiny(folder), []

    def write(path: Path, images: np.ndarray, labels: np.ndarray, names: object) -> None:
        drawn.append((path.name, images.shape, list(labels), names))

    config.train.steps = 2
    config.optimizer.warmup_steps = 0
    config.optimizer.schedule = "constant"
    assert loop.train(config, tmp_path / "run", write) == 0
    config.train.steps = 4
    assert loop.train(config, tmp_path / "run", write) == 0
    rows = metrics.read_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert np.isfinite([row["loss"] for row in rows]).all()
    assert 0.5 < rows[1]["heldout_loss"] < 2
    name, shape, labels, names = drawn[-1]
    assert (name, shape, labels) == ("step_0000004.png", (3, 8, 16, 16, 1), [0, 1, 2])
    assert all(text.startswith("a ") and " moving " in text for text in names)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["data"]["words"] == list(moving_digits.WORDS["digit"])
    said = (tmp_path / "run" / "log.txt").read_text()
    child = tiny(folder)
    child.init_from = str(tmp_path / "run")
    start = find_start(make_run(child))
    assert (start.step, len(start.lines)) == (0, 1), "the same words: nothing to warn of"
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"seven"', '"sept"'))
    assert "was 'sept', is 'seven'" in find_start(make_run(child)).lines[1]
    assert "clips/s" in said
    assert "images" not in said


def test_frames_that_all_see_each_other_learn_times_of_their_own(folder: Path, tmp_path: Path) -> None:
    """And are drawn all at once, with one time."""
    config, drawn = tiny(folder), []
    config.model.update({"frame_causal": False, "reads": ("all",), "past_frames": 0})
    config.diffusion.update({"frame_times": "independent", "drafts": 0, "film_every": 1, "still_frames": 0})
    config.train.steps = 2
    assert loop.train(config, tmp_path / "run", lambda _, clips, *names: drawn.append(clips.shape)) == 0
    rows = metrics.read_rows(tmp_path / "run")
    assert np.isfinite([row["loss"] for row in rows]).all()
    assert 0.5 < rows[1]["heldout_loss"] < 2
    assert drawn == [(3, 8, 16, 16, 1)]


@pytest.mark.parametrize("mixer", ["pom", "attention"])
def test_pictures_of_a_run_with_clean_pasts_are_drawn_frame_after_frame(
    mixer: str, folder: Path, tmp_path: Path
) -> None:
    """What is drawn within whole clips is what carried states give, guided, with the noise of each frame."""
    config = recipe.get_config(mixer)
    config.data.dir = str(folder)
    config.model.update({"width": 16, "depth": 1, "num_heads": 2})
    config.sampling.update({"steps": 2, "later_steps": 3, "later_guidance": 1.5, "num": 2})
    run = make_run(config)
    params = awake(run.model, models.dummy_inputs(run.model))
    samples = shown(config, run.heldout)
    preview = Preview(config, run.model, tmp_path, lambda *_: None, params, samples)
    preview.compile()
    drawn = preview.draw(params, 0, lambda _: None)
    preview.close()

    scales = config.sampling.guidance, config.sampling.later_guidance
    low, high = config.sampling.guidance_interval
    grids = [time_grid(steps, shift=config.diffusion.shift) for steps in (2, 3)]
    noise_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2))
    noise = jax.random.normal(noise_key, drawn.shape)
    both = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b]), samples.given, conditions.none(config.model, samples.given)
    )

    def network(x: jax.Array, t: jax.Array, states: Any, frame: int) -> Any:
        return run.model.apply({"params": params}, jnp.concatenate([x, x]), t, both, states, frame)

    @jax.jit
    def film() -> jax.Array:
        states, frames = run.model.init_states(4), []
        for frame in range(2):
            x = noise[:, frame : frame + 1]
            for t, after in itertools.pairwise(grids[frame > 0]):
                said, nothing = jnp.split(network(x, jnp.full(4, t), states, frame)[0], 2)
                data = nothing + (scales[frame > 0] if low <= t <= high else 1) * (said - nothing)
                x = data + (x - data) * after / t
            x = jnp.clip(x, -1, 1)
            states = network(x, jnp.zeros(4), states, frame)[1]
            frames.append(x)
        return jnp.concatenate(frames, 1)

    np.testing.assert_allclose(drawn[:, :2], film(), rtol=0, atol=2e-4)


def test_checkpoints_are_chosen_on_the_validation_digits(folder: Path) -> None:
    run = make_run(tiny(folder))
    assert run.heldout.split == heldout_split(run.train.manifest) == "validation"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("frames", 7, "clips of 7 x 16 x 16 x 1"),
        ("vocabulary", 9, "up to 4 words from a vocabulary of 9"),
        ("text_length", 5, "up to 5 words from a vocabulary of 17"),
        ("vocabulary", 0, "4 embeddings of 32 channels"),
    ],
)
def test_data_that_the_model_does_not_fit(folder: Path, field: str, value: int, words: str) -> None:
    config = tiny(folder)
    config.model[field] = value
    with pytest.raises(InputError, match=words):
        make_run(config)


@pytest.mark.parametrize(
    ("times", "model", "words"),
    [
        ({"frame_times": "clean_past"}, {"frame_causal": False}, "'clean_past' needs model.frame_causal"),
        (
            {"frame_times": "teacher_forcing", "drafts": 1},
            {"frame_causal": False},
            "'teacher_forcing' needs model.frame_causal=True: set it, or .* 'independent'",
        ),
        ({"frame_times": "clean_past", "given_frames": 8}, {}, "given_frames=8 leaves nothing to learn"),
        ({"still_frames": 9}, {}, "still_frames=9: a clip has 8 frames of patches"),
        ({"film_every": 8, "still_frames": 1}, {}, "batch_size=4 must be a positive multiple of 8"),
    ],
)
def test_times_that_the_model_cannot_take_are_found_before_anything_is_made(
    folder: Path, tmp_path: Path, times: dict, model: dict, words: str
) -> None:
    config = tiny(folder)
    off = {"frame_times": "shared", "drafts": 0, "film_every": 1, "still_frames": 0}
    config.diffusion.update(off | times)
    config.model.update({"reads": ("all",), "past_frames": 0} | model)
    workdir = tmp_path / "run"
    with pytest.raises(InputError, match=words):
        loop.train(config, workdir, lambda *_: None)
    assert not workdir.exists()


def test_clips_have_no_fid(folder: Path) -> None:
    config = tiny(folder)
    config.fid.update({"every": 2, "reference": "x", "inception": "y"})
    with pytest.raises(InputError, match=r"fid\.every"):
        make_run(config)


@pytest.mark.parametrize("vocabulary", [0, 9])
def test_synthetic_clips_fit_the_model(vocabulary: int) -> None:
    config = common.video("Polymorpher-S/2", "streaming", frames=4, height=4, width=6)
    config.model.update({"vocabulary": vocabulary, "text_length": 5, "text_width": 7})
    config.data.source = "synthetic"
    batch = open_source(config.data, "train", config.model).gather([0, 5])
    text = conditions.condition(config.model, {name: jnp.asarray(value) for name, value in batch.items()})
    assert batch["mean"].shape == (2, 1, 4, 4, 6, 16)
    assert text.tokens.shape == ((2, 5) if vocabulary else (2, 5, 7))
    assert ((text.mask.sum(1) >= 1) & (text.mask.sum(1) <= 5)).all()
