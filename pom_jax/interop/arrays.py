"""Tensors of numpy, JAX or torch as numpy arrays; torch is never imported."""

from typing import Any

import numpy as np


def to_numpy(tensor: Any) -> np.ndarray:
    """The tensor's numbers in its own dtype; torch's bfloat16, which numpy does not know, becomes float32."""
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:
        return tensor.float().numpy()
