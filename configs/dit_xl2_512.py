"""DiT-XL/2 fine-tuned on 512 x 512 ImageNet, as 64 x 64 x 4 latents of an autoencoder.

    python train.py --config=configs/dit_xl2_512.py --config.data.dir=DIR --config.init_from=runs/dit_xl2

`runs/dit_xl2` is a run of configs/dit_xl2.py with `--config.model.positions=sincos_phase`
(`common.imagenet_fine_tuning` says why). Devices: any number that divides the batch of 256.
`configs.common.imagenet` says what `data.dir` holds, how to try the speed without data, what saves memory,
and where the values come from; length and learning rate are ours and untried.

Cost: 683.8 million parameters; 1,049 GFLOP for a forward pass of one image, 806 TFLOP for a step of 256
images, 40 EFLOP for all 50,000 steps. That is 28 hours of one H100 at 40 % of its bfloat16 peak: arithmetic,
not a measurement. Memory of one of 8 devices with 32 images each: 10.2 GiB of state and 14.1 of work, as
compiled for TPU v5p (jax 0.10.2, not run there).

Expected result: not known for this library. The DiT paper reports FID 3.04 (guided) for a network that was
trained at 512 pixels from its start, for 3 million steps of 256 images with noise prediction and a constant
learning rate of 1e-4; this config is the twin of dipom_xl2_512.py instead.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str | None = None) -> ConfigDict:
    """Raises InputError for any variant: there are none."""
    config = common.imagenet_fine_tuning("DiT-XL/2", variant, latent_side=64)
    config.train.steps = 50_000
    return config
