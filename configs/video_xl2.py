"""Polymorpher-XL/2: text to video, in latents of 80 frames of 128 x 240 pixels.

    python train.py --config=configs/video_xl2.py[:streaming] --config.data.dir=DIR

Devices: any number that divides the batch of 64. `configs.common.video` says what `data.dir` holds, what the
variant does, how to try the speed without data, and where the values come from.

Cost: 1050.6 million parameters; 1,200 tokens a clip, 1.54 TFLOP for a forward pass, 296 TFLOP for a step.

Expected result: not known; nobody has trained this recipe to the end with this library.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str | None = None) -> ConfigDict:
    """Raises InputError for any variant but `streaming`."""
    return common.video("Polymorpher-XL/2", variant)
