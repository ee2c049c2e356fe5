"""Pure functions of arrays; nothing here knows of parameters or Flax."""

from pom_jax.ops.attention import attention as attention
from pom_jax.ops.dense import dense as dense
from pom_jax.ops.norms import gelu as gelu
from pom_jax.ops.norms import layer_norm as layer_norm
from pom_jax.ops.polynomials import clamped_leaky_relu as clamped_leaky_relu
from pom_jax.ops.polynomials import hard_sigmoid as hard_sigmoid
from pom_jax.ops.polynomials import power_features as power_features
from pom_jax.ops.polynomials import product_features as product_features
from pom_jax.ops.states import State as State
from pom_jax.ops.states import merge_states as merge_states
from pom_jax.ops.states import state_mean as state_mean
from pom_jax.ops.states import token_state as token_state
