"""DiPoM-XL/2 on 256 x 256 ImageNet, as latents of an autoencoder.

    python train.py --config=configs/dipom_xl2.py --config.data.dir=DIR

A run that dipom_xl2_512.py is to fine-tune needs `--config.model.positions=sincos_phase` from its start: a
finer grid can follow their waves. Devices: any number that divides the batch of 256.
`configs.common.imagenet` says what `data.dir` holds, how to try the speed without data, what saves memory,
and where the values come from.

Cost: 832.5 million parameters; 305 GFLOP for a forward pass of one image, 234 TFLOP for a step of 256 images,
70 EFLOP for all 300,000 steps. That is 49 hours of one H100 at 40 % of its bfloat16 peak: arithmetic, not a
measurement. Parameters, optimiser and one average take 13.3 GB. Memory of one of 8 devices with 32 images
each: 12.4 GiB of state and 31.7 of work; 6.4 with --config.model.remat=full, as compiled for TPU v5p (jax
0.10.2, not run there).

Expected result: not known for this library. A news article tells FID 2.46 (ADM's evaluation) of the authors'
XL/2, after half of DiT's steps; their batch size, number of steps, sampler and guidance are not known here.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str | None = None) -> ConfigDict:
    """Raises InputError for any variant: there are none."""
    return common.imagenet("DiPoM-XL/2", variant)
