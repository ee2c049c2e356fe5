"""Linen modules that own the parameters of the layers; the maths is in `pom_jax.ops`."""

from pom_jax.nn.attention import LocalAttention as LocalAttention
from pom_jax.nn.attention import MultiHeadAttention as MultiHeadAttention
from pom_jax.nn.dense import Dense as Dense
from pom_jax.nn.hybrid import Hybrid as Hybrid
from pom_jax.nn.pom import PoM as PoM
from pom_jax.nn.pom import torch_uniform as torch_uniform
from pom_jax.ops.phase import Phase as Phase
from pom_jax.ops.rotary import Rotary as Rotary
from pom_jax.ops.states import FrameStates as FrameStates
from pom_jax.ops.states import State as State
