"""Polymorpher-B/2 on images: text to image in latents of 256 x 256 pixels, clips of one frame.

    python train.py --config=configs/t2i_b2.py --config.data.dir=DIR

`data.dir` is made by `python prepare.py captions` with an autoencoder of 4 channels and a text encoder of
1,024. Devices: any number that divides the batch of 256. `configs.common.video` says where the values come
from; text to image is that model with one frame.

Cost: 297.2 million parameters; 256 tokens an image, 98.1 GFLOP for a forward pass, 75.4 TFLOP for a step.

Expected result: not known; nobody has trained this recipe to the end with this library.
"""

from ml_collections import ConfigDict

from configs import common
from pom_jax.errors import InputError


def get_config(variant: str | None = None) -> ConfigDict:
    """Raises InputError for any variant: there are none."""
    if variant:
        raise InputError(f"configs/t2i_b2.py has no variant {variant!r}; leave out what follows the colon")
    config = common.video("Polymorpher-B/2", None, frames=1, height=32, width=32)
    config.name = "t2i_b2"
    config.model.update({"frame_patch": 1, "channels": 4})
    config.data.batch_size = 256
    return config
