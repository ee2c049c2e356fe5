"""Muon: which parameters are the matrices that it makes orthogonal; optax does so."""

from typing import Any

import jax
import optax
from optax import contrib

from pom_jax.training.digest import path_name

_OUTER = ("patch_embedding/kernel", "out/kernel")  # they read and write samples

# s -> a s + b s^3 + c s^5 of the singular values, one after the other: each the closest to 1 on what those
# before it make of [0.01, 1], so that together they bring all of it to 1 +- 0.27 (Polar Express, arXiv
# 2505.16932). With rows scaled beforehand, so that few singular values are smaller (Turbo-Muon, arXiv
# 2512.04632), three do what takes Muon's own polynomial five.
COEFFICIENTS = (
    (8.0934, -23.6204, 17.4462),
    (3.6366, -2.7219, 0.5365),
    (2.6613, -1.9772, 0.4526),
)


def hidden_matrices(params: Any) -> Any:
    """The matrices that Muon makes orthogonal: what maps tokens, texts or times from layer to layer.

    Each degree, each read of a state, each head and each modulation has a matrix of its own, but the output
    of a mixer is one matrix. Left to Adam: biases, norms, tables, coefficients, and the projections of
    samples into the network and out of it.

    Args:
        params: of any model; an optimiser of a part of them may have put `optax.MaskedNode` for others.

    Returns:
        A tree like `params` of their axes (`contrib.MuonDimensionNumbers`), None where there is none.
    """
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda n: isinstance(n, optax.MaskedNode))
    names = {path_name(path) for path, _ in nodes}

    def axes(path: tuple, leaf: Any) -> contrib.MuonDimensionNumbers | None:
        name, first = path_name(path), int(path[0].key == "blocks")
        if not name.endswith("kernel") or name in _OUTER:
            return None
        if name.endswith("/out/kernel"):
            return contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)
        # Features of the power form are one matrix, [D, E], or one for each group, [G, D/G, E/G].
        power = name.replace("features/kernel", "coefficients") in names - {name}
        return contrib.MuonDimensionNumbers(leaf.ndim - 2 if power else first, leaf.ndim - 1)

    return jax.tree.map_with_path(axes, params)


def muon(
    rate: optax.ScalarOrSchedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) of the hidden matrices, with one moment, and Adam of everything else.

    Updates have the root mean square of AdamW's (0.2, arXiv 2502.16982), so a learning rate of AdamW is a
    good first one here. A matrix [m, n] costs 3 iterations of 4 m^2 n + 2 m^3 operations (m the smaller side)
    a step, whatever the batch, and each device that has it does them all; flops do not count them.

    Args:
        rate: learning rate of both, or a function of the update count.
        b1, b2: of Adam; Muon's momentum is 0.95.
        eps: of both.
        weight_decay: of the hidden matrices alone.
        mu_dtype: of the first moments; float32 by default.

    Returns:
        The transformation, a partition of optax; its updates are added to the parameters.
    """
    return contrib.muon(
        rate,
        eps=eps,
        weight_decay=weight_decay,
        mu_dtype=mu_dtype,
        adam_b1=b1,
        adam_b2=b2,
        muon_weight_dimension_numbers=hidden_matrices,
        consistent_rms=0.2,
        ns_coeffs=COEFFICIENTS,
        ns_steps=len(COEFFICIENTS),
        preconditioning="aol",
    )
