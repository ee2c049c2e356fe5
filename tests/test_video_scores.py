"""The scores of moving digits are what their definitions say, and each fault lowers the score it should."""

import numpy as np
import pytest

from pom_jax.data import moving_digits as data
from pom_jax.errors import InputError
from pom_jax.evaluation import moving_digits as scores
from pom_jax.evaluation.digit_tracks import crop, frames_of, locate

SIZE, FRAMES, CLIPS = 16, 8, 300
ROOM = SIZE - data.SIDE
STEPS = ("direction", "speed", "on_path")


@pytest.fixture(scope="module")
def reference():
    return scores.fit("test")


@pytest.fixture(scope="module")
def drawn():
    """Clips of the test digits: images, labels, and what makes them."""
    images, labels = data.digit_images("test")
    clips = data.draw("test", CLIPS, ROOM)
    return images[clips.digit], labels[clips.digit], clips


def asked_of(drawn, **known):
    _, labels, clips = drawn
    return scores.Asked(labels, clips.direction, **known)


def clips_along(images, paths):
    return data.render(images, paths, SIZE).astype(np.float32) / 8 - 1


def true_clips(drawn, frames=FRAMES):
    images, _, clips = drawn
    return clips_along(images, data.path(clips.start, clips.direction, frames, ROOM))


def means(found):
    return {name: found.mean(name)[0] for name in (*found.clips, "frechet")}


@pytest.fixture(scope="module")
def real(reference, drawn):
    return means(scores.score(reference, true_clips(drawn), asked_of(drawn, digit=drawn[2].digit)))


def test_real_clips_have_the_known_floors(reference, drawn, real):
    assert real["recognised"] == pytest.approx(0.985, abs=0.01)
    assert real["identity"] == pytest.approx(0.32, abs=0.03)
    assert [real[name] for name in (*STEPS, "likeness")] == pytest.approx([1, 1, 1, 1])
    assert 0 < real["frechet"] < 0.5  # 1 is what the training digits have
    assert reference.floor == pytest.approx(0.0831, abs=0.002)
    # At 8 times the length, where the start has to be found, each step is still right.
    long = means(
        scores.score(
            reference,
            true_clips(drawn, 8 * FRAMES)[::6],
            scores.Asked(*(a[::6] for a in (drawn[1], drawn[2].direction))),
        )
    )
    assert [long[name] for name in STEPS] == [1, 1, 1]


def test_pixels_in_bytes_score_alike(reference, drawn, real):
    pixels = np.round((true_clips(drawn) + 1) * 127.5).astype(np.uint8)
    found = means(scores.score(reference, pixels, asked_of(drawn, digit=drawn[2].digit)))
    for name, value in real.items():
        assert found[name] == pytest.approx(value, abs=5e-3), name


def test_faint_noise_does_not_count_as_a_fault(reference, drawn, real):
    noise = np.random.default_rng(0).normal(scale=0.1, size=(CLIPS, FRAMES, SIZE, SIZE, 1))
    found = means(scores.score(reference, true_clips(drawn) + noise, asked_of(drawn, digit=drawn[2].digit)))
    for name in ("recognised", *STEPS):
        assert found[name] == pytest.approx(real[name], abs=0.02), name


def test_a_perfect_continuation_has_it_all(reference, drawn, real):
    true, clips = true_clips(drawn, 17), drawn[2]
    found = scores.score(
        reference, true, asked_of(drawn, start=clips.start, digit=clips.digit, true=true), given=1
    )
    assert found.mean("true_frame") == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert means(found)["identity"] == pytest.approx(real["identity"])
    for values in found.by_frame().values():
        assert np.isnan(values[0])
        assert not np.isnan(values[1:]).any()


def test_a_frozen_clip_lacks_the_motion_and_nothing_else(reference, drawn, real):
    true, clips = true_clips(drawn), drawn[2]
    frozen = np.repeat(true[:, :1], FRAMES, axis=1)
    found = means(
        scores.score(
            reference, frozen, asked_of(drawn, start=clips.start, digit=clips.digit, true=true), given=1
        )
    )
    assert [found[name] for name in STEPS] == [0, 0, 0]
    assert found["recognised"] == real["recognised"]
    assert found["identity"] == pytest.approx(real["identity"])
    assert found["true_frame"] < 0.5


def test_shuffled_frames_lack_the_motion(reference, drawn, real):
    order = [3, 0, 6, 2, 7, 4, 1, 5]
    found = means(scores.score(reference, true_clips(drawn)[:, order], asked_of(drawn, digit=drawn[2].digit)))
    assert found["speed"] < 0.2
    assert found["on_path"] < 0.2
    for name in ("recognised", "likeness", "identity", "frechet"):
        assert found[name] == pytest.approx(real[name])


def test_another_digit_is_not_recognised_and_one_of_its_class_is_no_identity(reference, drawn, real):
    images, labels, clips = drawn
    paths = data.path(clips.start, clips.direction, FRAMES, ROOM)
    wrong = clips_along(np.roll(images, 1, axis=0), paths)
    found = means(scores.score(reference, wrong, asked_of(drawn)))
    chance = np.mean(labels == np.roll(labels, 1))
    assert found["recognised"] == pytest.approx(chance, abs=0.03)
    assert [found[name] for name in STEPS] == [1, 1, 1]

    # From the second frame on another digit of the same class is shown.
    by_class = np.argsort(labels, kind="stable")
    other = np.empty_like(by_class)
    other[by_class] = np.roll(by_class, 1)
    clip = clips_along(images, paths)
    clip[:, 1:] = clips_along(images[other], paths)[:, 1:]
    found = means(scores.score(reference, clip, asked_of(drawn, digit=clips.digit), given=1))
    assert abs(found["identity"]) < 0.06
    assert found["recognised"] > 0.9


def test_the_wrong_way_has_the_wrong_direction_and_the_right_speed(reference, drawn, real):
    images, _, clips = drawn
    opposite = np.array([1, 0, 3, 2])[clips.direction]
    start = np.where(data.STEPS[opposite] == 0, clips.start, 4)
    clip = clips_along(images, data.path(start, opposite, 5, ROOM))  # no wall in these frames
    for known in ({}, {"start": start}):
        found = scores.score(reference, clip, asked_of(drawn, **known))
        assert found.mean("direction")[0] == pytest.approx(0, abs=0.2 if not known else 0)
        assert found.by_frame()["direction"][1] == 0
        assert found.mean("speed")[0] == 1
        assert found.mean("recognised")[0] == pytest.approx(real["recognised"], abs=0.02)


def test_what_is_too_slow_has_the_wrong_speed_and_the_right_direction(reference, drawn):
    images, _, clips = drawn
    start = np.where(data.STEPS[clips.direction] == 0, clips.start, 4)
    asked = asked_of(drawn, start=start)
    places = clips_along(images, data.path(start, clips.direction, 2, ROOM))
    parts = np.linspace(0, 1, 4)[:, None, None, None]  # a third of a pixel a frame
    found = means(scores.score(reference, places[:, :1] * (1 - parts) + places[:, 1:] * parts, asked))
    assert found["speed"] < 0.02
    assert found["direction"] > 0.97
    assert found["recognised"] > 0.9

    # A pixel in every second frame: half of the steps are wrong in all ways.
    places = clips_along(images, data.path(start, clips.direction, 3, ROOM))
    found = means(scores.score(reference, places[:, [0, 1, 1, 2, 2]], asked))
    assert [found[name] for name in STEPS] == [0.5, 0.5, 0.5]


def test_black_frames_and_broken_ones_are_wrong_and_nothing_is_nan(reference, drawn):
    clips = true_clips(drawn)[:20]
    asked = scores.Asked(drawn[1][:20], drawn[2].direction[:20], true=clips)
    spoilt = clips.copy()
    spoilt[:, 3] = -1
    spoilt[:, 5, 2, 2] = np.nan
    found = scores.score(reference, spoilt, asked).by_frame()
    for name in ("recognised", "likeness", "true_frame"):
        np.testing.assert_array_equal(found[name][[3, 5]], 0)
    for name in STEPS:
        np.testing.assert_array_equal(found[name][[3, 4, 5, 6]], 0)
        np.testing.assert_array_equal(found[name][[1, 2, 7]], 1)
    assert np.isfinite(found["frechet"]).all()
    # One clip alone: no other of its class, and no covariance.
    single = scores.score(reference, clips[:1], scores.Asked(*(a[:1] for a in asked[:2])))
    assert np.isnan([single.mean(name)[0] for name in ("identity", "frechet")]).all()


def test_the_order_of_the_clips_does_not_matter(reference, drawn):
    rng = np.random.default_rng(0)
    noisy = true_clips(drawn)[:60] + rng.normal(scale=0.1, size=(60, FRAMES, SIZE, SIZE, 1))
    asked = scores.Asked(drawn[1][:60], drawn[2].direction[:60])
    order = rng.permutation(60)
    first = scores.score(reference, noisy, asked)
    second = scores.score(reference, noisy[order], scores.Asked(asked.label[order], asked.direction[order]))
    for name, values in first.clips.items():
        np.testing.assert_allclose(second.clips[name], values[order], atol=1e-12)
    np.testing.assert_allclose(second.frechet, first.frechet)


def test_a_digit_is_cut_out_alike_wherever_it_is(drawn):
    images, _, _ = drawn
    for place in ((0, 0), (3, 8), (8, 5)):
        paths = np.broadcast_to(np.array(place), (len(images), 1, 2))
        frames = frames_of(data.render(images, paths, SIZE) / 8 - 1.0)[:, 0]
        np.testing.assert_allclose(
            crop(frames, locate(frames)), crop(images.astype(float), locate(images)), atol=1e-5
        )


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        ((3, 8, 16, 16), 0, "clips of moving digits are"),
        ((3, 8, 8, 8, 1), 0, "S more than 8"),
        ((3, 8, 16, 16, 1), 8, "given=8 frames of 8 leave nothing"),
        ((2, 8, 16, 16, 1), 0, r"label must be \(2,\)"),
    ],
)
def test_what_does_not_go_together_is_refused(reference, shape, given, message):
    with pytest.raises(InputError, match=message):
        scores.score(reference, np.zeros(shape), scores.Asked(np.zeros(3, int), np.zeros(3, int)), given)
