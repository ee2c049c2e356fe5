"""Records with captions, as words or as embeddings, of images and of clips."""

import json
import re

import jax
import numpy as np
import pytest

from pom_jax.data import Field, Records, Writer, pipeline, read_manifest
from pom_jax.data.manifest import FILE
from pom_jax.errors import InputError

CLIP = Field("uint8", (1, 2, 4, 4, 3))
LABEL = Field("int32", ())
WORDS = {"mean": CLIP, "text": Field("int32", (3,))}
EMBEDDED = {"mean": CLIP, "text": Field("float16", (3, 5)), "text_mask": Field("uint8", (3,))}


def open_writer(out, fields, words=()):
    return Writer(out, name="set", fields=fields, classes=[], words=words, scale=1.0, shift=0.0)


@pytest.mark.parametrize(
    ("fields", "words", "message"),
    [
        ({"mean": CLIP}, (), "a field label or text is needed"),
        ({"mean": Field("uint8", (4, 4, 3)), "label": LABEL}, (), "field mean .* is needed"),
        (WORDS, (), 'the first word must be ""'),
        (WORDS, ("", "a", "a"), "word 'a' stands twice"),
        (WORDS, ("", "a b"), "word 1 is 'a b'"),
        (WORDS, ("", "A"), "word 1 is 'A'"),
        (
            {"mean": CLIP, "label": Field("int32", ())},
            ("", "a"),
            "there are words, but there is no field text",
        ),
        ({**WORDS, "text_mask": Field("uint8", (3,))}, ("", "a"), "there can be no text_mask"),
        (EMBEDDED, ("", "a"), "there can be no words"),
        ({**EMBEDDED, "text_mask": Field("uint8", (4,))}, (), r"text_mask must be uint8 \(3,\)"),
        ({**EMBEDDED, "text": Field("float32", (3, 5))}, (), "text must be int32"),
    ],
)
def test_fields_that_do_not_fit_are_refused(tmp_path, fields, words, message):
    with pytest.raises(InputError, match=message):
        open_writer(tmp_path / "set", fields, words)


def clips(fields, count=2):
    return {name: np.zeros((count, *field.shape), field.dtype) for name, field in fields.items()}


@pytest.mark.parametrize(
    ("fields", "words", "name", "value", "message"),
    [
        (WORDS, ("", "a"), "text", 2, "record 1 of split train, field text: word 2 is not from 0 to 1"),
        (WORDS, ("", "a"), "text", -1, "word -1 is not from 0 to 1"),
        (EMBEDDED, (), "text", np.inf, "field text: NaN or infinite values"),
        (EMBEDDED, (), "text_mask", 2, "field text_mask: mask 2 is not from 0 to 1"),
    ],
)
def test_captions_that_cannot_be_used_are_refused_when_written(tmp_path, fields, words, name, value, message):
    batch = clips(fields)
    batch[name][1].flat[-1] = value
    with (
        pytest.raises(InputError, match=re.escape(message)),
        open_writer(tmp_path / "set", fields, words) as writer,
    ):
        writer.write("train", batch)


def test_a_word_that_the_table_lacks_is_found_when_read(tmp_path):
    with open_writer(tmp_path / "set", WORDS, ("", "a", "b")) as writer:
        for split in ("train", "test"):
            batch = clips(WORDS)
            batch["text"][:] = 2
            writer.write(split, batch)
    path = tmp_path / "set" / FILE
    content = json.loads(path.read_text())
    digest = read_manifest(tmp_path / "set").digest
    path.write_text(json.dumps({**content, "words": ["", "b", "a"]}))
    assert read_manifest(tmp_path / "set").digest != digest  # other words are other data
    path.write_text(json.dumps({**content, "words": ["", "a"]}))
    with pytest.raises(InputError, match="field text: word 2 is not from 0 to 1; make the data set again"):
        Records(tmp_path / "set", "train").gather([0])
    path.write_text(json.dumps({**content, "words": ["a", "b"]}))
    with pytest.raises(InputError, match=r'is damaged.*the first word must be ""'):
        read_manifest(tmp_path / "set")


def test_latents_of_clips_are_drawn_from_the_posterior_and_sets_of_embeddings_are_read_back(tmp_path):
    fields = {
        "mean": Field("float16", (2, 3, 4, 4, 2)),
        "std": Field("float16", (2, 3, 4, 4, 2)),
        **{name: field for name, field in EMBEDDED.items() if name != "mean"},
    }
    rng = np.random.default_rng(0)
    batch = {
        "mean": np.repeat(rng.choice([-4, 4], (5, 2, 1, 1, 1, 1)), 96, axis=2).reshape(5, 2, 3, 4, 4, 2),
        "std": np.full((5, 2, 3, 4, 4, 2), 0.5),
        "text": rng.normal(size=(5, 3, 5)),
        "text_mask": np.array([[1, 1, 0]] * 5),
    }
    batch = {name: array.astype(fields[name].dtype) for name, array in batch.items()}
    about = {"name": "set", "classes": [], "scale": 0.5, "shift": 1.0, "text_encoder": "small sha256:0"}
    with Writer(tmp_path / "set", fields=fields, **about) as writer:
        writer.write("train", batch)
        writer.write("test", batch)
    manifest, found = read_manifest(tmp_path / "set"), Records(tmp_path / "set", "train").gather(range(5))
    assert manifest == writer.manifest
    assert manifest.text_encoder == "small sha256:0"
    for name, array in batch.items():
        np.testing.assert_array_equal(found[name], array)
    x = np.asarray(pipeline.images(found, jax.random.key(0), manifest))
    assert x.shape == (5, 3, 4, 4, 2)
    assert 0.2 < (x - x.mean(axis=(1, 2, 3, 4), keepdims=True)).std() < 0.3
