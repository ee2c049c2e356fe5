"""Where each tensor of diffusers' AutoencoderKL goes: the one table, read in both directions.

What the table leaves out has one name in both: `encoder`, `decoder`, `quant_conv`, `post_quant_conv`, and
inside them `conv_in`, `conv_norm_out`, `conv_out` and the parts of residual blocks. A convolution has its
kernel as [h, w, in, out] here and [out, in, h, w] there, a projection of the attention [out, in] there.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pom_jax.errors import InputError
from pom_jax.vae.config import AutoencoderConfig
from pom_jax.vae.model import AutoencoderKL

# Ours, a whole name between two slashes of a path -> theirs.
NAMES = (
    (r"down_(\d+)_resnet_(\d+)", r"down_blocks.\1.resnets.\2"),
    (r"down_(\d+)_downsample", r"down_blocks.\1.downsamplers.0.conv"),
    (r"up_(\d+)_resnet_(\d+)", r"up_blocks.\1.resnets.\2"),
    (r"up_(\d+)_upsample", r"up_blocks.\1.upsamplers.0.conv"),
    (r"mid_resnet_(\d)", r"mid_block.resnets.\1"),
    (r"mid_attention_norm", r"mid_block.attentions.0.group_norm"),
    (r"mid_attention", r"mid_block.attentions.0"),
    (r"query", r"to_q"),
    (r"key", r"to_k"),
    (r"value", r"to_v"),
    (r"out", r"to_out.0"),
    (r"kernel|scale", r"weight"),
)

# The projections of the attention in files of old versions of diffusers -> in those of now.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

Path = tuple[str, ...]


def to_ours(tensors: Mapping[str, np.ndarray], config: AutoencoderConfig) -> dict[str, Any]:
    """Our tree of parameters in float32.

    Args:
        tensors: name -> array of numpy, of any floating dtype.
        config: of the autoencoder that they belong to.

    Raises:
        InputError: in one message all names that are missing or in excess, shapes that do not fit, and dtypes
            that are no floating-point numbers.
    """
    tensors = _renamed(tensors)
    shapes = parameter_shapes(config)
    wanted = {_their_name(path): _their_shape(shape) for path, shape in shapes.items()}
    _refuse(_problems(tensors, wanted), _hint(tensors))
    tree = {path: _to_ours(tensors[_their_name(path)], shape) for path, shape in shapes.items()}
    return traverse_util.unflatten_dict(tree)


def to_theirs(params: Mapping[str, Any], config: AutoencoderConfig) -> dict[str, np.ndarray]:
    """diffusers' tensors of our tree of parameters, in float32; the inverse of `to_ours`.

    Raises:
        InputError: in one message all parameters that are missing, in excess, or of another shape.
    """
    found = {"/".join(path): leaf for path, leaf in traverse_util.flatten_dict(dict(params)).items()}
    shapes = parameter_shapes(config)
    _refuse(_problems(found, {"/".join(path): shape for path, shape in shapes.items()}))
    arrays = {path: np.asarray(found["/".join(path)], np.float32) for path in shapes}
    return {_their_name(path): _to_theirs(array) for path, array in arrays.items()}


@functools.cache  # tracing the model takes a second
def parameter_shapes(config: AutoencoderConfig) -> Mapping[Path, tuple[int, ...]]:
    """Path in our tree -> shape."""
    side = config.downsampling
    pixels = jax.ShapeDtypeStruct((1, side, side, config.in_channels), jnp.float32)
    tree = jax.eval_shape(AutoencoderKL(config).init, jax.random.key(0), pixels)["params"]
    leaves: Mapping[Path, Any] = traverse_util.flatten_dict(tree)
    return {path: leaf.shape for path, leaf in leaves.items()}


def _their_name(path: Path) -> str:
    names = []
    for name in path:
        pattern, theirs = next((row for row in NAMES if re.fullmatch(row[0], name)), (name, name))
        names.append(re.sub(pattern, theirs, name))
    return ".".join(names)


def _their_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    # One head: kernels are [C, 1, C] or [1, C, C], biases [1, C] or [C].
    return (shape[-1],) * (2 if len(shape) == 3 else 1)


def _to_ours(tensor: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    moved = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    return jnp.array(moved.reshape(shape), jnp.float32)


def _to_theirs(array: np.ndarray) -> np.ndarray:
    shape = _their_shape(array.shape)
    moved = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.reshape(shape).T
    return np.ascontiguousarray(moved)


def _renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by the names that diffusers uses now."""
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        old = rf"(attentions\.0)\.({'|'.join(OLD_NAMES)})\."
        new = re.sub(old, lambda found: f"{found[1]}.{OLD_NAMES[found[2]]}.", name)
        if new in renamed:
            raise InputError(f"the tensors have {new} twice, by its old name and by its new one; delete one")
        renamed[new] = tensor
    return renamed


def _problems(found: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> Iterable[str]:
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found or name not in wanted:
            yield f"{'missing' if name in wanted else 'unexpected'}: {name}"
        elif found[name].shape != wanted[name]:
            yield f"shape of {name}: {list(found[name].shape)}, but {list(wanted[name])} goes with the config"
        elif not jnp.issubdtype(found[name].dtype, jnp.floating):
            yield f"dtype of {name}: {found[name].dtype}, floating-point numbers are needed"


def _refuse(problems: Iterable[str], hint: str = "") -> None:
    lines = list(problems)
    if lines:
        raise InputError("\n  ".join([f"these are not the parameters of the autoencoder{hint}:", *lines]))


def _hint(names: Iterable[str]) -> str:
    if any("encoder.down.0." in name for name in names):
        return (
            " but of the first code of latent diffusion; convert them with diffusers' "
            "AutoencoderKL.from_single_file(...).save_pretrained(...)"
        )
    return ""
