r"""DiPoM-XL/2 fine-tuned on 1024 x 1024 ImageNet, as 128 x 128 x 4 latents of an autoencoder.

    python train.py --config=configs/dipom_xl2_1024.py --config.data.dir=DIR \
        --config.init_from=runs/dipom_xl2_512

`runs/dipom_xl2_512` is a run of configs/dipom_xl2_512.py. Devices: any number that divides the batch of 256.
`configs.common.imagenet` says what `data.dir` holds, how to try the speed without data, what saves memory,
and where the values come from; length and learning rate are ours and untried.

Cost: 832.5 million parameters; 4,871 GFLOP for a forward pass of one image, 3,741 TFLOP for a step of 256
images, 94 EFLOP for all 25,000 steps. That is 66 hours of one H100 at 40 % of its bfloat16 peak:
arithmetic, not a measurement. Memory of one of 8 devices with 32 images each: 12.4 GiB of state and 24.4 of
work, as compiled for TPU v5p (jax 0.10.2, not run there).

Expected result: not known. The authors show pictures of this size; scores of them are not known here.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str | None = None) -> ConfigDict:
    """Raises InputError for any variant: there are none."""
    config = common.imagenet_fine_tuning("DiPoM-XL/2", variant, latent_side=128)
    config.train.steps = 25_000
    return config
