"""DiT-B/2 on 256 x 256 ImageNet, as latents of an autoencoder.

    python train.py --config=configs/dit_b2.py --config.data.dir=DIR

Devices: any number that divides the batch of 256. `configs.common.imagenet` says what `data.dir` holds, how
to try the speed without data, what saves memory, and where the values come from.

Cost: 134.2 million parameters; 46.0 GFLOP for a forward pass of one image, 35.3 TFLOP for a step of 256
images, 11 EFLOP for all 300,000 steps. That is 7.4 hours of one H100 at 40 % of its bfloat16 peak:
arithmetic, not a measurement. Parameters, optimiser and one average take 2.1 GB. Memory of one of 8 devices
with 32 images each: 2.0 GiB of state and 6.4 of work, as compiled for TPU v5p (jax 0.10.2, not run there).

Expected result: not known for this library. The DiT paper reports FID 43.5 (not guided) after 400,000 steps
of 256 images with noise prediction and a constant learning rate of 1e-4; this config is the twin of
dipom_b2.py instead: the same recipe, with attention for PoM.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str | None = None) -> ConfigDict:
    """Raises InputError for any variant: there are none."""
    return common.imagenet("DiT-B/2", variant)
