"""The call of `flax.linen.MultiHeadDotProductAttention` as one of the mixer."""

import jax

from pom_jax.errors import InputError


def tokens_given(
    x: jax.Array | None,
    context: jax.Array | None,
    values: jax.Array | None,
    inputs_q: jax.Array | None,
    inputs_k: jax.Array | None,
    inputs_v: jax.Array | None,
    inputs_kv: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Queries and context of a call, whether the mixer's names stand in it or attention's.

    Args:
        x, context, values: of `nn.PoM`'s call.
        inputs_q, inputs_k, inputs_v, inputs_kv: of attention's.

    Returns:
        The queries, and the context, None where the queries mix with themselves.

    Raises:
        InputError: no queries, one argument by two names, or values that are not the keys.
    """
    queries = _one("queries", x=x, inputs_q=inputs_q)
    keys = _one("keys", context=context, inputs_k=inputs_k, inputs_kv=inputs_kv)
    values = _one("values", values=values, inputs_v=inputs_v)
    if queries is None:
        raise InputError("the call has no queries: give x, attention's inputs_q")
    if values is not None and values is not keys:
        raise InputError(
            "PoM has one context and no values beside the keys: give the keys alone, as context or inputs_k, "
            "or the same array twice; under jit and remat an array that is given twice counts as two"
        )
    return queries, keys


def _one(what: str, **given: jax.Array | None) -> jax.Array | None:
    names = [name for name, array in given.items() if array is not None]
    if len(names) > 1:
        raise InputError(f"the call has its {what} twice, as {' and as '.join(names)}: give one of them")
    return given[names[0]] if names else None
