"""What a source of records is, and which one a config asks for."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pom_jax.data.manifest import ADVICE, Manifest, read_manifest
from pom_jax.data.records import Records
from pom_jax.data.synthetic import Synthetic
from pom_jax.errors import InputError, choose

SOURCES = ("shards", "synthetic")


class Source(Protocol):
    """One split of a data set, by index."""

    manifest: Manifest
    split: str

    def __len__(self) -> int: ...

    def gather(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The records at `indices` [n], in that order: `{field: [n, *shape]}`; called by several threads."""
        ...


class OneClass:
    """A source whose labels are all 0: the same images for an unconditional model."""

    def __init__(self, source: Source):
        self.manifest = source.manifest
        self.split = source.split
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """As the source's, with `label` [n] zeros."""
        batch = self._source.gather(indices)
        return {**batch, "label": np.zeros_like(batch["label"])}


def open_source(data: Mapping[str, Any], split: str, model: Mapping[str, Any] | None = None) -> Source:
    """The split that `config.data` asks for, checked against `config.model` where that is given.

    Args:
        data: `source` "shards" or "synthetic"; for shards `dir`, and `memory_gb` as `Records` has it.
        split: "train" or "test".
        model: of `config.model`; the synthetic source takes its sizes from it.

    Raises:
        InputError: unknown source, no data, damaged shards, or data that the model does not fit.
    """
    if choose("data.source", data["source"], SOURCES) == "synthetic":
        return Synthetic(split) if model is None else Synthetic(split, **_synthetic(model))
    if not data["dir"]:
        raise InputError(f"data.dir is empty. {_how_to_make(model, None)}")
    manifest = read_manifest(data["dir"], _how_to_make(model, data["dir"]))
    if model is not None:
        check_model(manifest, model)
    source = Records(data["dir"], split, memory=data.get("memory_gb", 0) * 1e9)
    if model is None:
        return source
    return OneClass(source) if model.get("num_classes") == 1 else source


def heldout_split(manifest: Manifest) -> str:
    """The split that recipes and checkpoints are chosen by: "validation" where there is one, else "test"."""
    return "validation" if "validation" in manifest.splits else "test"


def check_model(manifest: Manifest, model: Mapping[str, Any]) -> None:
    """Raises InputError unless images and labels of the data set are those that the model is made for."""
    if _draws_clips(model):
        _check_clips(manifest, model)
        return
    wanted = (model["image_size"], model["image_size"], model["channels"])
    if wanted != manifest.image_shape:
        raise InputError(
            f"model.image_size and model.channels ask for {wanted}, data set {manifest.name} has images of "
            f"{manifest.image_shape}; change the model's sizes or data.dir"
        )
    if model["num_classes"] not in (1, len(manifest.classes)):
        raise InputError(
            f"model.num_classes is {model['num_classes']}, data set {manifest.name} has labels 0 to "
            f"{len(manifest.classes) - 1}; set model.num_classes to {len(manifest.classes)} (or 1) "
            "or change data.dir"
        )


def _draws_clips(model: Mapping[str, Any]) -> bool:
    return "frames" in model


def _check_clips(manifest: Manifest, model: Mapping[str, Any]) -> None:
    """Raises InputError unless clips and texts of the data set are those that the model is made for."""
    names = ("frames", "frame_height", "frame_width", "channels")
    wanted = tuple(model[name] for name in names)
    if manifest.sample_shape != wanted:
        found = " x ".join(map(str, manifest.sample_shape))
        raise InputError(
            f"the model is for clips of {' x '.join(map(str, wanted))} ({', '.join(names)}), data set "
            f"{manifest.name} has samples of {found}; change the model's sizes or data.dir"
        )
    text = manifest.fields.get("text")
    if text is None:
        raise InputError(f"data set {manifest.name} has no texts (field text), which this model is given")
    made_for: tuple[int, ...] = (model["text_length"],)
    made_for += () if model["vocabulary"] else (model["text_width"],)
    if text.shape != made_for or len(manifest.words) != model["vocabulary"]:
        sizes = dict(zip(("text_length", "text_width"), text.shape, strict=False))
        sizes["vocabulary"] = len(manifest.words)
        changes = ", ".join(f"model.{name}={size}" for name, size in sizes.items())
        raise InputError(
            f"the model reads captions of {_captions(made_for, model['vocabulary'])}, data set "
            f"{manifest.name} has captions of {_captions(text.shape, len(manifest.words))}; set {changes}, "
            "or change data.dir"
        )


def _captions(shape: tuple[int, ...], vocabulary: int) -> str:
    if vocabulary:
        return f"up to {shape[0]} words from a vocabulary of {vocabulary}"
    return f"up to {shape[0]} embeddings of {shape[1]} channels"


def _synthetic(model: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of random samples for a model."""
    if not _draws_clips(model):
        return {name: model[name] for name in ("image_size", "channels", "num_classes")}
    shape = tuple(model[name] for name in ("frames", "frame_height", "frame_width", "channels"))
    text = (model["text_length"], model["vocabulary"] or model["text_width"])
    return {"clip": shape, "text": text, "vocabulary": model["vocabulary"]}


def _how_to_make(model: Mapping[str, Any] | None, folder: str | None) -> str:
    """What to do for a data set that the model fits, in words; `folder` is where it is looked for."""
    if model is None:
        return ADVICE
    if (found := _of_digits(model)) is not None:
        command, name = found
        out = shlex.quote(folder or f"data/{name}")
        return f"Make one with `python prepare.py {command} --out={out}`, then --config.data.dir={out}"
    name, sides = "images", (model.get("image_size"),) * 2
    if _draws_clips(model):
        name = "videos" if model["frames"] > 1 else "captions"
        sides = model["frames"], model["frame_height"], model["frame_width"]
    sizes = " x ".join(map(str, (*sides, model["channels"])))
    return (
        f"This config trains on samples of {sizes}: `python prepare.py {name} --help` says how to make a set "
        "of yours, `python prepare.py --help` lists all others and `pom_jax.data.Writer` writes any; then "
        "--config.data.dir=DIR. To try the speed without data: --config.data.source=synthetic"
    )


def _of_digits(model: Mapping[str, Any]) -> tuple[str, str] | None:
    """What prepare.py is told to make digits, still or moving, for a model, and the set's name; or None."""
    from pom_jax.data.moving_digits import NAME, WORDS, set_name

    if not _draws_clips(model):
        return ("digits", "digits") if (model["image_size"], model["channels"]) == (8, 1) else None
    kind = next((kind for kind, words in WORDS.items() if len(words) == model["vocabulary"]), None)
    if kind is None or model["frame_height"] != model["frame_width"] or model["channels"] != 1:
        return None
    wanted = {"captions": kind, "frames": model["frames"], "size": model["frame_height"]}
    usual = {"captions": "digit", "frames": 8, "size": 16}
    flags = (f" --{name}={value}" for name, value in wanted.items() if value != usual[name])
    return NAME + "".join(flags), set_name(kind)
