"""Real digits in motion: text to video, frame after frame, on a CPU in minutes.

    python prepare.py moving-digits
    python train.py --config=configs/moving_digits.py --config.data.dir=data/moving-digits
    python sample.py --workdir=runs/moving_digits --prompt="a seven moving up" --frames=64 --stream

Variants, after a colon: `attention`, the twin with rotary positions, and `quick`, which stops after 100 steps
to show that everything runs; joined by commas.

Devices: made for one CPU. Cost: 0.76 million parameters; 128 tokens a clip, 4,000 steps.

Every frame has a time of its own in training, and a token reads its own frame and the one before: what the
state holds of finished frames is learned at every time, time 0 among them.

Expected result: digits that move. The recipe is not settled: how well they can be read, and for how long, is
not measured yet.
"""

from ml_collections import ConfigDict

from configs import common
from pom_jax.errors import InputError

MIXERS = {
    "pom": {
        "mixer": "pom",
        "reads": ("own", "last"),
        "phase_periods": (8.0,),
        "expansion": 1,
        "ffn_expansion": 4,
    },
    "attention": {"mixer": "attention", "rotary": True, "ffn_expansion": 5},
}


def get_config(variant: str | None = None) -> ConfigDict:
    """Raises InputError for an unknown variant."""
    words = [word for word in (variant or "").split(",") if word]
    mixers = [word for word in words if word in MIXERS] or ["pom"]
    if set(words) - MIXERS.keys() - {"quick"} or len(mixers) > 1:
        raise InputError(
            f"configs/moving_digits.py has no variant {variant!r}; give one of {', '.join(MIXERS)}, and "
            "quick if wanted, joined by a comma"
        )
    config = common.video_base()
    config.name = "_".join(["moving_digits", *(w for w in words if w != "pom")])
    config.dtype = "float32"
    config.model.update(
        {"frames": 8, "frame_height": 16, "frame_width": 16, "channels": 1, "patch_size": 4, "frame_patch": 1}
        | {"text_length": 4, "text_width": 32, "vocabulary": 17, "width": 64, "depth": 4, "num_heads": 4}
        | {"frame_causal": True, "positions": "sincos_grid"}
        | MIXERS[mixers[0]]
    )
    config.diffusion.frame_times = "independent"
    config.data.update({"dir": "data/moving-digits", "batch_size": 32})
    config.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 100, "b2": 0.99})
    config.train.update(
        {"steps": 4_000, "eval_every": 500, "sample_every": 2_000, "checkpoint_every": 500, "log_every": 5.0}
    )
    config.sampling.update({"sampler": "euler", "steps": 20, "guidance": 2.0, "num": 8})
    if "quick" in words:
        config.optimizer.warmup_steps = 10
        config.train.update({"steps": 100, "eval_every": 50, "sample_every": 100, "checkpoint_every": 100})
    return config
