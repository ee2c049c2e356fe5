"""DiPoM-B/2 on 256 x 256 ImageNet, as latents of an autoencoder.

    python train.py --config=configs/dipom_b2.py --config.data.dir=DIR

Devices: any number that divides the batch of 256. `configs.common.imagenet` says what `data.dir` holds, how
to try the speed without data, what saves memory, and where the values come from.

Cost: 176.7 million parameters; 65.3 GFLOP for a forward pass of one image, 50.2 TFLOP for a step of 256
images, 15 EFLOP for all 300,000 steps. That is 11 hours of one H100 at 40 % of its bfloat16 peak: arithmetic,
not a measurement. Parameters, optimiser and one average take 2.8 GB. Memory of one of 8 devices with 32
images each: 2.6 GiB of state and 9.3 of work, as compiled for TPU v5p (jax 0.10.2, not run there).

Expected result: not known; nobody has trained this recipe to the end with this library.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str | None = None) -> ConfigDict:
    """Raises InputError for any variant: there are none."""
    return common.imagenet("DiPoM-B/2", variant)
