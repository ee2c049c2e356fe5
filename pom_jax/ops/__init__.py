"""Pure functions of arrays; nothing here knows of parameters or Flax."""

from pom_jax.ops.attention import attention as attention
from pom_jax.ops.dense import dense as dense
from pom_jax.ops.dense import grouped_dense as grouped_dense
from pom_jax.ops.mixing import mix as mix
from pom_jax.ops.mixing import read_state as read_state
from pom_jax.ops.norms import gelu as gelu
from pom_jax.ops.norms import layer_norm as layer_norm
from pom_jax.ops.phase import Phase as Phase
from pom_jax.ops.polynomials import clamped_leaky_relu as clamped_leaky_relu
from pom_jax.ops.polynomials import cumulative_products as cumulative_products
from pom_jax.ops.polynomials import hard_sigmoid as hard_sigmoid
from pom_jax.ops.polynomials import power_features as power_features
from pom_jax.ops.polynomials import product_features as product_features
from pom_jax.ops.prefix import prefix_sum as prefix_sum
from pom_jax.ops.recipe import FeatureWeights as FeatureWeights
from pom_jax.ops.recipe import ReadWeights as ReadWeights
from pom_jax.ops.recipe import Recipe as Recipe
from pom_jax.ops.rotary import Rotary as Rotary
from pom_jax.ops.rotary import grid_positions as grid_positions
from pom_jax.ops.states import FrameStates as FrameStates
from pom_jax.ops.states import State as State
from pom_jax.ops.states import empty_state as empty_state
from pom_jax.ops.states import merge_states as merge_states
from pom_jax.ops.states import state_mean as state_mean
from pom_jax.ops.states import token_state as token_state
from pom_jax.ops.windows import local_attention as local_attention
