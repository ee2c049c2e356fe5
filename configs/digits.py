"""scikit-learn's 8 x 8 digits: the whole library on real images, on a CPU, in minutes.

    python prepare.py digits --out=data/digits
    python train.py --config=configs/digits.py --config.data.dir=data/digits

Variants, after a colon and joined by commas: `pom` (product form, the default), `power` (power form),
`attention`, `hybrid` (the product form beside attention in windows of 3 x 3 tokens), and `quick`, which stops
after 300 steps to show that everything runs. Every second layer attention in such windows:
`--config.model.attention_every=2 --config.model.window=1`.

Devices: made for one CPU. Cost: 0.37 million parameters, 1.5 GFLOP for a step of 64 images, 4,500 steps.

Expected result: a held-out loss and digits that can be read; `python eval.py` says how good they are, and
README.md gives the scores of this recipe with the machine they were measured on.
"""

from ml_collections import ConfigDict

from configs import common
from pom_jax.errors import InputError

MIXERS = {
    "pom": {"mixer": "pom", "form": "product", "degree": 2, "expansion": 1, "ffn_expansion": 4},
    "power": {"mixer": "pom", "form": "power", "degree": 3, "expansion": 2, "ffn_expansion": 4},
    "attention": {"mixer": "attention", "ffn_expansion": 5},
    "hybrid": {"mixer": "hybrid", "form": "product", "expansion": 1, "window": 1, "ffn_expansion": 2},
}


def get_config(variant: str | None = None) -> ConfigDict:
    """Raises InputError for an unknown variant."""
    words = [word for word in (variant or "").split(",") if word]
    unknown = sorted(set(words) - MIXERS.keys() - {"quick"})
    mixers = [word for word in words if word in MIXERS] or ["pom"]
    if unknown or len(mixers) > 1:
        raise InputError(
            f"configs/digits.py has no variant {variant!r}; give one of {', '.join(MIXERS)}, and quick if "
            "wanted, joined by a comma"
        )
    config = common.base()
    config.name = "_".join(
        ["digits", *([] if mixers == ["pom"] else mixers), *(["quick"] * ("quick" in words))]
    )
    config.dtype = "float32"
    config.model.update(
        {"image_size": 8, "channels": 1, "num_classes": 10, "patch_size": 2}
        | {"width": 64, "depth": 4, "num_heads": 4}
        | MIXERS[mixers[0]]
    )
    config.data.update({"dir": "data/digits", "batch_size": 64})
    config.optimizer.update({"learning_rate": 5e-3, "warmup_steps": 135, "b2": 0.99})
    config.train.update(
        {"steps": 4_500, "eval_every": 500, "sample_every": 1_500, "checkpoint_every": 500, "log_every": 5.0}
    )
    config.sampling.update({"sampler": "dpm++2m", "steps": 20, "guidance": 1.5, "num": 100})
    if "quick" in words:
        config.optimizer.warmup_steps = 30
        config.train.update({"steps": 300, "eval_every": 100, "sample_every": 300, "checkpoint_every": 300})
    return config
