"""Real digits in motion: text to video, frame after frame, on a CPU in minutes.

    python prepare.py moving-digits
    python train.py --config=configs/moving_digits.py --config.data.dir=data/moving-digits
    python sample.py --workdir=runs/moving_digits --prompt="a seven moving up" --frames=64 --stream

Variants, after a colon, joined by commas: `attention`, the twin with rotary positions; `memory`, whose
captions tell the direction alone, so that only a given first frame tells the digit; `quick`, which stops
after 100 steps to show that everything runs. For `memory`:

    python prepare.py moving-digits --captions=direction
    python train.py --config=configs/moving_digits.py:memory

What the recipe rests on:

- Teacher forcing: each step runs two clean clips and noisy drafts of each, whose frames read the states of
  the clean frames before them. So training sees what a film sees when it is drawn, and every draft counts.
- Stills: only a first frame is drawn from the caption alone, and a clip has but one. So all frames are
  learned as pictures, too; without, the digits are sharp and steady, but not those of the caption.
- The pooled text: without it a caption of four words is hardly learned in this time (after 3,000 steps 15 %
  of the frames show the digit that was asked for, 55 % with it).
- The phase reads' periods of 4 and 2 patches: the state of a frame of 4 x 4 patches then holds every spatial
  frequency there is, so that a token can tell each place of the frame before from all others.
- The network predicts the data: what it has to copy from frame to frame is then its output itself. Times are
  shifted towards the noise, where it has nothing else to copy from.
- Guidance for first frames alone: behind finished frames it makes a film drift.

Devices: made for one CPU. Cost: 0.78 million parameters (`memory` 0.89, `attention` 0.55); 128 tokens a clip,
5,600 steps of two clips, six takes each (`memory`: 7,000 of four takes). Ten to fifteen minutes on two cores
of a shared machine, whose speed varies as much.

Expected result: digits that move and bounce. `memory`, test split, 200 clips that go on for 16 frames from a
real one: 98 % of the first drawn frames show its digit, 91 % of all, 82 % of the 16th; direction right in
99 % of the steps. With captions that tell the digit, 200 clips of 8 frames: the first frame shows the digit
of the caption in 87 %, the last in 66 %; direction right in 97 % of the steps.
"""

from ml_collections import ConfigDict

from configs import common
from pom_jax.errors import InputError

MIXERS = {
    "pom": {"mixer": "pom", "reads": ("own", "last"), "phase_periods": (4.0, 2.0), "expansion": 1},
    "attention": {"mixer": "attention", "rotary": True, "ffn_expansion": 5},
}


def get_config(variant: str | None = None) -> ConfigDict:
    """Raises InputError for an unknown variant."""
    words = [word for word in (variant or "").split(",") if word]
    mixers = [word for word in words if word in MIXERS] or ["pom"]
    if set(words) - MIXERS.keys() - {"memory", "quick"} or len(mixers) > 1:
        raise InputError(
            f"configs/moving_digits.py has no variant {variant!r}; give one of {', '.join(MIXERS)}, and "
            "memory or quick if wanted, joined by commas"
        )
    config = common.video_base()
    config.name = "_".join(["moving_digits", *(w for w in words if w != "pom")])
    config.dtype = "float32"
    config.model.update(
        {"frames": 8, "frame_height": 16, "frame_width": 16, "channels": 1, "patch_size": 4, "frame_patch": 1}
        | {"text_length": 4, "text_width": 32, "vocabulary": 17, "width": 64, "depth": 4, "num_heads": 4}
        | {"frame_causal": True, "positions": "sincos_grid", "ffn_expansion": 4, "pooled_text": True}
        | {"context_frames": 2}
        | MIXERS[mixers[0]]
    )
    config.diffusion.update({"prediction": "data", "frame_times": "teacher_forcing", "shift": 2.0})
    config.diffusion.update({"drafts": 2, "film_every": 8, "still_frames": 3})
    config.data.update({"dir": "data/moving-digits", "batch_size": 16})
    config.optimizer.update({"learning_rate": 4e-3, "warmup_steps": 200, "b2": 0.99})
    config.train.update({"steps": 5_600, "eval_every": 1_400, "eval_size": 200, "sample_every": 2_800})
    config.train.update({"checkpoint_every": 1_400, "log_every": 5.0})
    config.sampling.update(
        {"sampler": "euler", "steps": 20, "num": 8, "guidance": 4.0, "later_guidance": 1.0}
    )
    if "memory" in words:
        config.model.update({"text_length": 2, "vocabulary": 6, "pooled_text": False})
        config.diffusion.update({"given_frames": 1, "drafts": 3, "film_every": 1, "still_frames": 0})
        config.diffusion.shift = 3.0
        config.data.batch_size = 2
        config.train.update({"steps": 7_000, "sample_every": 3_500})
        config.data.dir = "data/moving-digits-direction"
        config.sampling.guidance = 1.0
    if "quick" in words:
        config.optimizer.warmup_steps = 10
        config.train.update({"steps": 100, "eval_every": 50, "sample_every": 100, "checkpoint_every": 100})
    return config
