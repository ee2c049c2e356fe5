"""What a network is told beside the noisy sample and the time: labels, or texts; and what stands for none."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pom_jax import models
from pom_jax.models import Text

Condition = Any  # labels [B] int32, or a `Text`


def condition(model: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> Condition:
    """The labels or texts of a batch.

    Args:
        model: `config.model`.
        batch: `label` [B], or `text` [B, M] (numbers of words, 0 for none) or [B, M, D] with `text_mask`.
    """
    if models.family(model) is models.DiPoM:
        return batch["label"]
    text = batch["text"]
    if "text_mask" in batch:
        return Text(text.astype(jnp.float32), batch["text_mask"].astype(jnp.float32))
    return Text(text, (text != 0).astype(jnp.float32))


def none(model: Mapping[str, Any], given: Condition) -> Condition:
    """As many that say nothing: the null class, or texts that are masked out."""
    if isinstance(given, Text):
        return given._replace(mask=jnp.zeros_like(given.mask))
    return jnp.full_like(given, model["num_classes"])


def drop(model: Mapping[str, Any], given: Condition, key: jax.Array, share: float) -> Condition:
    """Replaces a random share of the labels or texts by none: guidance needs both kinds."""
    if isinstance(given, Text):
        kept = ~jax.random.bernoulli(key, share, given.mask.shape[:1])
        return given._replace(mask=given.mask * kept[:, None])
    return jnp.where(jax.random.bernoulli(key, share, given.shape), model["num_classes"], given)
