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

- Past frames: a token also sees the two frames before its own around its place, a local path from frame to
  frame. With the states alone (`--config.model.past_frames=0`), which hold all of a frame, digits are copied
  less exactly, and change in the course of a film.
- Teacher forcing: noisy drafts of a film, each frame of which reads the clean frames before it. So training
  sees what a film sees when it is drawn, and every draft counts.
- Stills (not `memory`, whose first frame is given): of 32 clips one is learned as a film, of all the first
  frame as a picture. It alone is drawn from the caption, and what a caption asks for is learned sooner from
  many clips. First frames, not any: a digit told to move down begins where it can, later it is at the bottom
  too, and a film that begins there is torn: with four frames at random of sixteen clips 97.2 % of the first
  frames showed the digit of the caption, 94.8 % of the second; with first frames of 64 clips 97.0 and 96.8 %
  (both 6,000 steps of 112 frames; validation, 500 clips).
- Batches of 64 clips, 112 frames: on two cores such a step takes 1.3 times as long as one of 32 clips and 56
  frames. 9,500 small steps reached 94.7 to 94.9 % in all (three runs), 11,000 97.2 %, 6,000 large ones 96.1 %
  (validation, 500 clips, which tell it within a point).
- Muon (not `memory`): after 4,400 steps 95.5 % of the frames showed the digit of the caption, with AdamW
  94.2 %, and they were like the first one's very digit by 0.161 in place of 0.093 (validation, 100 clips,
  stills of four frames of sixteen clips).
- The pooled text (not `memory`): without it a caption of four words is hardly learned in this time.
- The phase reads' periods of 4 and 2 patches: the state of a frame of 4 x 4 patches then holds every spatial
  frequency there is, so that a token can tell each place of the frame before from all others.
- The network predicts the data: what it has to copy from frame to frame is then its output itself. Times are
  shifted towards the noise, where it has nothing else to copy from.
- Much guidance and twenty steps for first frames (not `memory`), no guidance and five steps behind finished
  ones, where what comes next is hardly in doubt, and more of either makes a film drift: of 64 frames the last
  eight showed their digit in 70 %, with guidance 1.5 in 60 %. And none at the ends of time: with guidance
  from 0.1 to 0.9 alone 98.4 % of the first frames were right, everywhere 97.6 % (validation, 2,000 frames).

Devices: made for one CPU. Cost: 0.79 million parameters (`memory` 0.91, `attention` 0.56); 128 tokens a clip,
8,800 steps of 112 frames (`memory`: 7,500 of 64). Less than nine minutes on two quiet cores, compiling
included, eight or less for `memory`; other machines took up to twice as long for a step. Up to two devices
take such a batch; for more set a larger data.batch_size.

Expected result: digits that move and bounce. `memory`, test split, 200 clips that go on for 16 frames from a
real one: 98 % of the first drawn frames show its digit, 96 % of all, 94 % of the 16th (98 % of real ones do);
direction right in 99 % of the steps. With captions that tell the digit, 1,000 clips of 8 frames: 98 % show
the digit of the caption, of the last frames as of all (97 % with `attention`); direction and speed right in
99 % of the steps or more.
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
        | {"past_frames": 2}
        | MIXERS[mixers[0]]
    )
    config.diffusion.update({"prediction": "data", "frame_times": "teacher_forcing", "shift": 2.0})
    config.diffusion.update({"drafts": 2, "film_every": 32, "still_frames": 1})
    config.data.update({"dir": "data/moving-digits", "batch_size": 64})
    config.optimizer.update({"name": "muon", "learning_rate": 4e-3, "warmup_steps": 200, "b2": 0.99})
    config.train.update({"steps": 8_800, "eval_every": 2_000, "eval_size": 200, "sample_every": 3_000})
    config.train.update({"checkpoint_every": 2_000, "log_every": 5.0})
    config.sampling.update(
        {"sampler": "euler", "num": 8, "guidance": 5.0, "guidance_interval": (0.1, 0.9), "steps": 20}
        | {"later_guidance": 1.0, "later_steps": 5}
    )
    if "memory" in words:
        config.model.update({"text_length": 2, "vocabulary": 6, "pooled_text": False})
        config.model.update({"width": 96, "depth": 2})
        config.diffusion.update({"given_frames": 1, "drafts": 3, "film_every": 1, "still_frames": 0})
        config.diffusion.shift = 3.0
        config.data.batch_size = 2
        config.optimizer.update({"name": "adamw", "learning_rate": 4e-3})
        config.train.update({"steps": 7_500, "eval_every": 2_500, "sample_every": 3_750})
        config.train.checkpoint_every = 2_500
        config.data.dir = "data/moving-digits-direction"
        config.sampling.update({"steps": 5, "later_steps": -1, "guidance": 1.0, "later_guidance": -1.0})
    if "quick" in words:
        config.optimizer.warmup_steps = 10
        config.train.update({"steps": 100, "eval_every": 50, "sample_every": 100, "checkpoint_every": 100})
    return config
