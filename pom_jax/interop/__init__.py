"""The authors' PyTorch tensors in and out: layers and whole models, from state dicts and back.

    python -m pom_jax.interop list|import|export ...

does it for files and workdirs; see its --help.
"""

from pom_jax.interop.export import export_layer as export_layer
from pom_jax.interop.export_model import export_model as export_model
from pom_jax.interop.files import read_tensors as read_tensors
from pom_jax.interop.files import write_tensors as write_tensors
from pom_jax.interop.image_models import Imported as Imported
from pom_jax.interop.image_models import import_model as import_model
from pom_jax.interop.layers import import_layer as import_layer
from pom_jax.interop.names import find_layers as find_layers
from pom_jax.interop.video_models import import_video_model as import_video_model
