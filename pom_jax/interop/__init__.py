"""The authors' PyTorch tensors in and out: a layer from its state dict, a state dict from a layer."""

from pom_jax.interop.export import export_layer as export_layer
from pom_jax.interop.files import read_tensors as read_tensors
from pom_jax.interop.files import write_tensors as write_tensors
from pom_jax.interop.layers import import_layer as import_layer
from pom_jax.interop.names import find_layers as find_layers
