"""Polymorpher-S/2: text to video, in latents of 80 frames of 128 x 240 pixels.

    python train.py --config=configs/video_s2.py[:streaming] --config.data.dir=DIR

Devices: any number that divides the batch of 64. `configs.common.video` says what `data.dir` holds, what the
variant does, how to try the speed without data, and where the values come from.

Cost: 74.7 million parameters; 1,200 tokens a clip, 112 GFLOP for a forward pass, 21.4 TFLOP for a step
(23.1 with `streaming`, for every frame reads the text at its own time).

Expected result: not known; nobody has trained this recipe to the end with this library.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str | None = None) -> ConfigDict:
    """Raises InputError for any variant but `streaming`."""
    return common.video("Polymorpher-S/2", variant)
