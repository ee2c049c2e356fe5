"""Linen modules that own the parameters of the layers; the maths is in `pom_jax.ops`."""

from pom_jax.nn.attention import MultiHeadAttention as MultiHeadAttention
from pom_jax.nn.dense import Dense as Dense
from pom_jax.nn.pom import PoM as PoM
