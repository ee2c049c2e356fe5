"""What a file of tensors holds, in words."""

from collections.abc import Iterator, Mapping

import numpy as np

from pom_jax.errors import InputError
from pom_jax.interop import model_sizes
from pom_jax.interop.image_models import (
    PREFIXES,
    find_layout,
    predicts_variance,
    select_weights,
    wrong_tensors,
)
from pom_jax.interop.model_layouts import FACEBOOK, MARKS, WHOSE
from pom_jax.interop.names import find_layers

SIZES = (
    "width", "depth", "patch_size", "image_size", "channels", "num_classes", "degree", "expansion",
    "degree * expansion", "num_heads", "ffn_expansion", "registers", "frames", "frame_height", "frame_width",
    "frame_patch", "frame_patch * patch_size^2 * channels", "text_width",
)  # fmt: skip


def listing(tensors: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Lines: the models, with their sizes or what is wrong with them, or the layers; then every tensor."""
    models = [line for weights in PREFIXES for line in _model(tensors, weights)]
    yield from models
    if not models:
        layers = find_layers(tensors)
        yield f"no model, {len(layers)} layers of PoM" + (
            f": {', '.join(map(repr, layers))}" if layers else ""
        )
    yield f"{len(tensors)} tensors:"
    for name, array in tensors.items():
        yield f"  {name} {list(array.shape)} {array.dtype}"


def _model(tensors: Mapping[str, np.ndarray], weights: str) -> Iterator[str]:
    try:
        found, _ = select_weights(tensors, weights)
    except InputError:
        return
    facebook = MARKS[1] in found
    layout = find_layout(found, FACEBOOK[0] if facebook else None)
    whose = "facebookresearch's DiT or SiT" if facebook else WHOSE[layout]
    if problems := wrong_tensors(found, layout):
        yield f"{weights}: a model like {whose}, but"
        yield from (f"  {problem}" for problem in problems)
        return
    try:
        sizes = model_sizes.measure(found, layout, model_sizes.NOTHING_TOLD)
    except InputError as error:
        yield f"{weights}: a model like {whose}, but {error}"
        return
    if sizes.get("degree", 1) is None:  # a degree of 1 was taken for it
        sizes["degree * expansion"] = sizes.pop("expansion")
    if sizes["channels"] is None:
        sizes["frame_patch * patch_size^2 * channels"] = found["in_proj.weight"].shape[1]
        del sizes["channels"]
    known = {name: sizes[name] for name in SIZES if name in sizes}
    yield f"{weights}: {whose}: " + ", ".join(f"{n} {v}" for n, v in known.items() if v is not None)
    told = ["objective", *(name for name, value in known.items() if value is None)]
    if facebook and predicts_variance(found, sizes):
        told.append("drop_variance (half of the output predicts variances)")
    yield "  to be given: " + ", ".join(told)
