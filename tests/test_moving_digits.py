"""Digits move as their captions and paths say, and no digit is in two splits."""

import re

import jax
import numpy as np
import pytest

import prepare as prepare_command
from configs.common import video_base
from configs.moving_digits import get_config
from pom_jax import models
from pom_jax.data import Records, digits, moving_digits, open_source, pipeline, read_manifest
from pom_jax.data.synthetic import CLIPS
from pom_jax.data.words import decode, encode
from pom_jax.errors import InputError

SIZE, FRAMES, ROOM = 12, 8, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "clips"
    moving_digits.prepare(out, size=SIZE, frames=FRAMES, clips=1300)
    return out


def everything(folder, split):
    records = Records(folder, split)
    return records.manifest, records.gather(np.arange(len(records)))


@pytest.mark.smoke
@pytest.mark.parametrize("split", moving_digits.SPLITS)
def test_a_record_tells_its_true_clip_at_any_length(folder, split):
    manifest, batch = everything(folder, split)
    images, labels = moving_digits.digit_images(split)
    paths = moving_digits.path(batch["start"], batch["direction"], 3 * FRAMES, ROOM)
    clips = moving_digits.render(images[batch["digit"]], paths, SIZE)
    np.testing.assert_array_equal(batch["mean"][:, 0], clips[:, :FRAMES])
    assert manifest.sample_shape == (FRAMES, SIZE, SIZE, 1)
    np.testing.assert_array_equal(batch["label"], labels[batch["digit"]])
    for record in range(3):
        text = decode(batch["text"][record], manifest.words)
        assert text == moving_digits.caption(batch["label"][record], batch["direction"][record])

    # One pixel in every step, along one axis; the first one as the caption says.
    steps = np.diff(paths, axis=1)
    np.testing.assert_array_equal(np.abs(steps).sum(axis=(1, 2)), 3 * FRAMES - 1)
    np.testing.assert_array_equal(steps[:, 0], moving_digits.STEPS[batch["direction"]])
    assert (np.abs(steps).max(axis=1) * np.abs(steps).max(axis=1)[:, ::-1] == 0).all()
    assert clips.sum(axis=(2, 3, 4)).std(axis=1).max() == 0  # the digit is whole in every frame
    top, left = paths[0, 1]
    np.testing.assert_array_equal(clips[0, 1, top : top + 8, left : left + 8, 0], images[batch["digit"][0]])


@pytest.mark.parametrize(
    ("word", "second"), [("left", [2, 1]), ("right", [2, 3]), ("up", [1, 2]), ("down", [3, 2])]
)
def test_a_direction_is_what_its_word_says(word, second):
    direction = moving_digits.DIRECTIONS.index(word)
    assert moving_digits.path(np.array([2, 2]), direction, 2, ROOM).tolist() == [[2, 2], second]


def test_places_directions_and_digits_are_evenly_chosen(folder):
    _, batch = everything(folder, "train")
    counts = np.bincount(batch["digit"])[moving_digits.split_digits("train")]
    assert set(counts) == {1, 2}
    assert (np.bincount(batch["direction"]) > 250).all()
    left = batch["start"][batch["direction"] == 0]
    assert set(left[:, 0]) == set(range(ROOM + 1))
    assert set(left[:, 1]) == set(range(1, ROOM + 1))  # none that faces the edge at once


def test_no_digit_is_in_two_splits():
    train, validation, test = map(moving_digits.split_digits, moving_digits.SPLITS)
    assert (len(train), len(validation), len(test)) == (1237, 200, 360)
    assert set(train) | set(validation) == set(range(1437))
    labels = digits.load().train_labels[validation]
    assert set(np.bincount(labels)) <= {19, 20, 21}


def test_the_same_options_give_the_same_bytes_and_others_the_same_test_clips(folder, tmp_path):
    first = read_manifest(folder)
    again = moving_digits.prepare(tmp_path / "again", size=SIZE, frames=FRAMES, clips=1300)
    assert again == first
    fewer = moving_digits.prepare(tmp_path / "fewer", size=SIZE, frames=FRAMES, clips=10)
    assert fewer.splits["test"] == first.splits["test"]
    other = moving_digits.prepare(tmp_path / "seed", size=SIZE, frames=FRAMES, clips=10, seed=1)
    assert other.splits["test"] != first.splits["test"]


def test_the_command_makes_captions_of_the_direction_alone(tmp_path, capsys):
    out = tmp_path / "set"
    flags = [f"--out={out}", "--captions=direction", "--clips=20", "--size=9", "--frames=3"]
    assert prepare_command.main(["moving-digits", *flags]) == 0
    manifest, batch = everything(out, "train")
    assert manifest.words == ("", "moving", "left", "right", "up", "down")
    assert {decode(text, manifest.words) for text in batch["text"]} <= {
        f"moving {direction}" for direction in moving_digits.DIRECTIONS
    }
    printed = capsys.readouterr().out
    assert "train: 20 clips" in printed
    assert "3 x 9 x 9 x 1, 10 classes, captions of up to 2 of 5 words" in printed
    assert (
        f"next: python train.py --config=configs/moving_digits.py:memory --config.data.dir={out}" in printed
    )
    config = get_config("memory")
    for field, value in re.findall(r"--config\.model\.(\w+)=(\d+)", printed):
        config.model[field] = int(value)
    assert models.build(config.model, config.dtype).patch_size == 1, "patches of 4 do not divide 9 pixels"
    sizes = prepare_command.clip_sizes(manifest, {"patch_size": 6, "frame_patch": 2})
    assert (sizes["model.patch_size"], sizes["model.frame_patch"]) == (3, 1), "of 9 pixels and 3 frames"
    # Clips with other captions are another set.
    assert prepare_command.main(["moving-digits", f"--out={out}"]) == 2
    assert "its manifest says moving-digits-direction" in capsys.readouterr().err
    assert prepare_command.main(["moving-digits", f"--out={out}", "--size=8"]) == 2
    assert "--size=8 must be at least 9" in capsys.readouterr().err


def test_the_help_names_the_folders_that_are_made_by_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        prepare_command.main(["moving-digits", "--help"])
    folders = [f"data/{moving_digits.set_name(kind)}" for kind in moving_digits.CAPTIONS]
    assert f"(default: {folders[0]}; with --captions=direction {folders[1]})" in capsys.readouterr().out


def test_the_model_sees_clips(folder):
    manifest, batch = everything(folder, "test")
    x = pipeline.images({"mean": batch["mean"][:2]}, jax.random.key(0), manifest)
    np.testing.assert_allclose(x, batch["mean"][:2, 0] / 8.0 - 1)
    with pytest.raises(InputError, match=r"holds clips of \(8, 12, 12, 1\), frames first"):
        _ = manifest.image_shape


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty; this model knows the words a, moving, zero"),
        (" \t", "the prompt is empty"),
        ("a tree moving left", "the word 'tree' is unknown. Did you mean 'three'"),
        ("a cow moving left", "the word 'cow' is unknown.* There are: a, moving"),
        ("a three moving left left", "has 5 words, this model reads at most 4"),
    ],
)
def test_a_prompt_that_cannot_be_encoded_is_refused(prompt, message):
    with pytest.raises(InputError, match=message):
        encode(prompt, moving_digits.WORDS["digit"], 4)


def test_prompts_are_encoded_and_filled_up():
    words = moving_digits.WORDS["direction"]
    np.testing.assert_array_equal(encode("  Moving LEFT ", words, 3), [1, 2, 0])
    assert encode("left", words, 2).dtype == np.int32


def test_what_the_model_misses_is_said_with_the_way_out(folder):
    model = get_config().model.to_dict()
    data = {"source": "shards", "dir": "no where"}
    with pytest.raises(InputError, match=r"exist.*`python prepare.py moving-digits --out='no where'`"):
        open_source(data, "train", model)
    larger = model | {"frames": 12, "frame_height": 24, "frame_width": 24}
    with pytest.raises(InputError, match=r"moving-digits --frames=12 --size=24 --out='no where'`"):
        open_source(data, "train", larger)
    memory = get_config("memory").model.to_dict()
    with pytest.raises(InputError, match=r"`python prepare.py moving-digits --captions=direction --out="):
        open_source(data, "train", memory)
    with pytest.raises(InputError, match=r"--config.data.dir=data/moving-digits-direction$"):
        open_source({**data, "dir": ""}, "train", memory)
    with pytest.raises(InputError, match=r"trains on samples of 20 x 16 x 30 x 16: .*videos --help"):
        open_source({**data, "dir": ""}, "train", video_base().model.to_dict())
    model |= {"frames": FRAMES, "frame_height": SIZE, "frame_width": SIZE, "vocabulary": 6, "text_length": 2}
    way = "set model.text_length=4, model.vocabulary=17, or change data.dir"
    with pytest.raises(InputError, match=f"captions of up to 2 words from a vocabulary of 6, .*; {way}"):
        open_source({**data, "dir": str(folder)}, "train", model)
    synthetic = open_source({"source": "synthetic"}, "train", model)
    assert (len(synthetic), synthetic.manifest.sample_shape) == (CLIPS, (FRAMES, SIZE, SIZE, 1))
