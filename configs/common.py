"""What every recipe shares: one tree with every field, and the base of the ImageNet recipes.

A recipe is a file with `get_config(variant)`; on the command line `--config=configs/digits.py:attention`
picks the variant and `--config.optimizer.learning_rate=1e-3` sets one field. Every field is listed here with
its meaning, but for the sizes of the network: the preset sets them and `pom_jax.models.DiPoM`, for clips
`pom_jax.models.Polymorpher`, explains them.
Every field is read somewhere; a misspelt one is an error.

Starting from another run, whose workdir is RUN (of train.py, or of `python -m pom_jax.interop import`):

- Fine-tuning, at a higher resolution or on other classes: `--config.init_from=RUN`. Parameters and averages
  are both those of RUN's first average; optimiser, schedule and step are new. Position tables are resampled;
  with another `model.num_classes`, or `--config.init_new_classes=True` where there are as many others, the
  rows of the classes are new and that of "no class" is kept; the gates of imported networks
  (`model.unit_gates`) are written anew for the same function. Whatever else does not fit is an error, as are
  other `activation`, `n_timesteps` and `time_embedding`; of other fields by which the same parameters compute
  something else there are warnings.
- A cool-down from any checkpoint of a run with `--config.optimizer.schedule=constant`:
  `--config.init_from=RUN --config.init_step=N --config.init_state=True`. RUN goes on after step N as if it
  had not stopped (parameters, optimiser, averages, draws, order of the data), under this recipe: with
  `--config.optimizer.schedule=linear --config.optimizer.decay_from=N --config.train.steps=M` the learning
  rate falls from step N to zero at step M.

Only a new workdir reads them: a run that was stopped goes on from its own checkpoint. RUN may be
gs://bucket/folder, which another run has as its `train.remote`.
"""

from ml_collections import ConfigDict

from pom_jax.diffusion.guidance import resolution_guidance
from pom_jax.diffusion.schedules import resolution_shift
from pom_jax.errors import InputError
from pom_jax.models import presets


def base() -> ConfigDict:
    """The whole tree with its defaults: class-conditional DiPoM on 32 x 32 x 4 latents of 1,000 classes."""
    config = ConfigDict()
    config.name = "unnamed"  # also names the default workdir, runs/<name>
    config.seed = 0  # of the parameters, of the order of the data and of every draw during training
    config.dtype = (
        "bfloat16"  # of the matrix products; parameters, norms, polynomials and losses stay float32
    )
    config.init_from = ""  # workdir whose parameters a new run starts from; "" = random ones
    config.init_step = -1  # which checkpoint of it; -1 = the newest
    config.init_ema = 0  # which of its averages parameters and averages start from; -1 = its parameters
    config.init_state = False  # True: all of its state goes on, see above
    config.init_new_classes = False  # True: new rows of the classes, though they may be as many as there
    config.model = _model()
    config.data = ConfigDict(
        {
            "source": "shards",  # or "synthetic": random samples of the model's shape, to measure speed
            "dir": "",  # folder written by prepare.py
            "batch_size": 256,  # images (or clips) per optimiser step, over all devices
            "memory_gb": 2.0,  # a split of so much at most (64 MB: always) stays in a process once read there
        }
    )
    config.diffusion = ConfigDict(
        {
            "path": "flow",  # or "variance": the variance-preserving path
            "variance_schedule": "linear",  # or sine, cosine, sigmoid, karras, ddpm; of the variance path
            "prediction": "velocity",  # or "noise", "data"
            "time_sampling": "uniform",  # or "logit_normal"
            "logit_mean": 0.0,  # logit_normal: mean and deviation of the time's logit
            "logit_std": 1.0,
            "shift": 1.0,  # resolution-dependent shift of time towards the noise; 1 = none
            "label_dropout": 0.1,  # share of the labels replaced by the null class, for guidance
        }
    )
    config.optimizer = _optimizer()
    config.ema = ConfigDict(
        {
            "decays": (0.999,),  # one average each; the first is the one that is sampled and validated
            "start": 0,  # the averages copy the parameters up to this update
            "every": 1,  # updates between two averagings
            "power": 2 / 3,  # ramp: the decay after n averagings is at most 1 - (1 + n) ** -power
            "offload": False,  # True: the averages wait in the host's memory, and come for each update
        }
    )
    config.train = _train()
    config.sampling = ConfigDict(  # of the grids drawn during training; and what sample.py does by default
        {
            "sampler": "heun",
            "steps": 25,
            "guidance": 4.0,
            "guidance_interval": (0.0, 1.0),  # of time (0 = data, 1 = noise), where guidance acts
            "num": 16,
        }
    )
    config.fid = ConfigDict(  # FID during training, of the first average
        {
            "every": 0,  # steps between two; 0 = never
            "num": 2_048,  # samples; numbers of other sizes do not compare
            "reference": "",  # real images: an .npz of ADM's suite or of eval.py, pictures, or a data set
            "inception": "",  # file of Inception's weights
            "autoencoder": "",  # folder of the one that the latents are of; empty for a model of pixels
            "sampler": "heun",
            "steps": 25,
            "guidance": 1.0,
            "guidance_interval": (0.0, 1.0),
            "batch_size": 256,  # samples drawn at once, for each process
        }
    )
    config.mesh = ConfigDict(  # devices along each axis; -1 = all that are left
        {
            "data": -1,  # each has other images
            "fsdp": 1,  # so have these, and each keeps a part of parameters, optimiser and averages
            "context": 1,  # each has other tokens of the same images
            "tensor": 1,  # each has other channels of the layers
            "slices": 0,  # groups of devices with a slow network between them; 0 = as the devices say
        }
    )
    config.log = ConfigDict({"tensorboard": False, "wandb": False})  # besides metrics.jsonl
    return config.lock()  # a recipe that sets a field which is not here fails


def video_base() -> ConfigDict:
    """The tree of recipes for clips with texts: `Polymorpher` on 20 x 16 x 30 x 16 latents by default."""
    config = base().unlock()
    config.model = ConfigDict(
        {
            "family": "polymorpher",
            "frames": 20,
            "frame_height": 16,
            "frame_width": 30,
            "channels": 16,
            "text_length": 64,
            "text_width": 1024,
            "vocabulary": 0,  # words of a table that is learned; 0 = texts come embedded
            "n_timesteps": 1000,
            "unit_gates": False,  # gates kept as the authors' 1 + g, which keeps their bits
            "scan": True,  # one compiled block for all layers; False unrolls: same checkpoints
            "remat": "none",  # computed again backwards: none, dots (all but products), states or full
        }
    )
    config.model.update(presets.preset("Polymorpher-S/2"))  # width, depth, patch_size, frame_patch, ...
    config.diffusion.update(
        {
            # The frames of a clip have one time ("shared"), each its own ("independent"), those before one
            # at random are clean ("clean_past"), or each of some noisy drafts of the clip reads the clean
            # frames before it ("teacher_forcing"): what is generated frame after frame reads clean frames.
            # The last two need model.frame_causal=True.
            "frame_times": "shared",
            "given_frames": 0,  # clean_past, teacher_forcing: first frames that films do not learn
            "drafts": 0,  # teacher_forcing: noisy drafts of a film, at least 1; 0 with any other
            "film_every": 1,  # of so many clips of a batch one is learned as a film, 1 = all
            "still_frames": 0,  # frames of patches of each clip, its first and others, learned as pictures
            # A step runs (1 + drafts) F / film_every + still_frames frames of patches for each clip of F.
        }
    )
    config.sampling.update({"guidance": 3.0, "num": 8})  # the authors draw with w = 2
    # Of frames that are drawn behind finished ones; -1 = as `guidance` and `steps`.
    config.sampling.update({"later_guidance": -1.0, "later_steps": -1})
    return config.lock()


def _optimizer() -> ConfigDict:
    return ConfigDict(
        {
            "name": "adamw",  # or "lamb", or "muon": of the hidden matrices, with Adam of everything else
            "learning_rate": 1e-3,
            "schedule": "cosine",  # or constant, linear, sqrt; to zero at train.steps
            "warmup_steps": 10_000,
            "decay_from": 0,  # step from which the schedule falls; the end of the warm-up if that is later
            "b1": 0.9,  # Muon's own momentum is 0.95
            "b2": 0.999,
            "eps": 1e-8,
            # Of matrices only: no biases, norms, embeddings, registers, positions; with Muon of its own only.
            "weight_decay": 0.01,
            "clip_norm": 1.0,  # of the whole gradient; 0 = off
            "accumulate": 1,  # slices of the batch computed one after the other, for less memory
            "moments": "float32",  # or "bfloat16": half the optimiser's memory (Muon: of the first moments)
            "offload": False,  # True: the moments wait in the host's memory, and come for each update
        }
    )


def _train() -> ConfigDict:
    return ConfigDict(
        {
            "steps": 300_000,
            "eval_every": 5_000,  # steps between two held-out losses; 0 = never
            "eval_size": 1_024,  # held-out images they are computed on, at most
            "sample_every": 10_000,  # steps between two grids of samples; 0 = never
            "checkpoint_every": 5_000,  # steps between two checkpoints; there is always one at the end
            "log_every": 10.0,  # seconds between two lines in log.txt, and on a screen that shows no bar
            "keep_last": 2,  # newest checkpoints kept
            "keep_best": 1,  # checkpoints with the lowest held-out loss kept besides
            "keep_every": 0,  # steps between two checkpoints that are kept for ever; 0 = none
            "max_skipped": 20,  # non-finite steps in a row that are wrong
            "absurd": 10.0,  # a loss that many times the largest of the last 100 is wrong too; 0 = none is
            "remote": "",  # gs://bucket/folder that the checkpoints are kept in; "" = the workdir
            "stuck_after": 900.0,  # seconds without progress after which the stacks are written; 0 = never
        }
    )


def _model() -> ConfigDict:
    config = ConfigDict(
        {
            "image_size": 32,
            "channels": 4,
            "num_classes": 1000,
            "n_timesteps": 1000,  # t in [0, 1] is multiplied by it before the time embedding
            "time_embedding": "homm",  # or "dit", "sit": how those networks see time
            "activation": "gelu",  # or "gelu_tanh", of DiT's feed-forward networks
            "unit_gates": False,  # gates kept as the authors' 1 + g, which keeps their bits
            "native_size": 0,  # image size whose patches positions "dit" count; 0 = image_size
            "clamp": 0.0,  # bound on the residual stream after each block; 0 = none
            "scan": True,  # one compiled block for all layers; False unrolls: same checkpoints
            "remat": "none",  # computed again backwards: none, dots (all but products), states or full
        }
    )
    config.update(presets.preset("DiPoM-S/2"))  # width, depth, patch_size, mixer, degree, expansion, ...
    return config


def imagenet(preset: str, variant: str | None = None, latent_side: int = 32) -> ConfigDict:
    """The recipe for ImageNet in latents of 4 channels; those of 256 x 256 images are 32 x 32.

    `data.dir` is a folder of shards with such latents of 1,000 classes, as `python prepare.py images
    --source=FOLDER --size=256 --autoencoder=DIR` makes them (`--size=512` or `--size=1024` for fine-tuning
    there, with `--min-size=256` or `--min-size=512` as the authors do). Without data, try the speed:
    `--config.data.source=synthetic`.

    Training is data-parallel over all devices; `--config.mesh.fsdp=8` also cuts parameters, optimiser and
    averages over 8 of them, `--config.mesh.context=8` the tokens of each image, of which PoM sends none, and
    `--config.mesh.tensor=2` the layers. `--config.model.remat=states` trades time for memory,
    `--config.optimizer.accumulate=4` computes the batch in 4 slices, and
    `--config.optimizer.moments=bfloat16` halves the optimiser's memory; `--config.optimizer.offload=True` and
    `--config.ema.offload=True` keep moments and averages in the host's. With `--dry-run=64` the command says
    what such a step needs of each of 64 devices, and what they send each other, on any machine.

    Where the values come from:

    - The first paper: the network (figure 3); flow matching and guidance that grows with the resolution
      (figure 4, `resolution_guidance`).
    - A news article on it, whose full text was not at hand: degree 2 and expansion 2; 256 pixels first, then
      fine-tuning at 512 and 1024; FID 2.46 for XL/2 at 256 pixels, after half of DiT's steps.
    - The authors' code (HoMM): the sizes, and by default (src/configs) AdamW with learning rate 1e-3, betas
      0.9 and 0.999, decay 0.01; 10,000 steps of warm-up, then a cosine to step 300,000; gradients clipped at
      norm 1; bfloat16; 10 % of the labels dropped; EMA 0.999; uniform times. Of its branch `upscale`: the
      time shift sqrt(side / 32) (`resolution_shift`) and the positions `sincos_phase`.
    - Ours: a batch of 256, which is DiT's (theirs is 128 by default); an EMA of every step from the first one
      on (theirs: every tenth, from step 10,000); continuous times (theirs: whole thousandths); one shifted
      time for noise and network (their network sees it in sampling but not in training); no decay of
      positions and registers; the grids drawn during training; length and learning rate of fine-tuning.
    - DiT's paper: sizes and batch of the DiT recipes, and nothing else of them. It has a constant learning
      rate of 1e-4 without warm-up, decay or clipping, an EMA of 0.9999, noise prediction over 1,000 times
      with learned variances, and trains 512 pixels from the start. The DiT recipes here are those of DiPoM
      with attention for PoM (the authors' baseline), so that the two compare.
    - Not known here: batch, steps, learning rate and objective of the published model (the name of a
      checkpoint speaks of 2.5 million steps and a cool-down), and its positions; sampler and guidance of the
      FID; all of the fine-tuning but that it was done.

    Args:
        preset: name such as "DiPoM-XL/2"; see `pom_jax.models.presets`.
        variant: what follows the colon of --config; nothing may.
        latent_side: of the latents, an eighth of the images'.

    Raises:
        InputError: an unknown preset or variant.
    """
    if variant:
        raise InputError(f"this recipe has no variant {variant!r}; leave out what follows the colon")
    config = base()
    config.name = preset.lower().replace("-", "_").replace("/", "")
    config.model.update(presets.preset(preset))
    config.diffusion.shift = resolution_shift(latent_side)
    config.sampling.guidance = resolution_guidance(latent_side)
    if latent_side != 32:
        config.name += f"_{8 * latent_side}"
        config.model.image_size = latent_side
    return config


def imagenet_fine_tuning(preset: str, variant: str | None, latent_side: int) -> ConfigDict:
    """`imagenet` at a higher resolution, for `--config.init_from` a run at a lower one.

    With positions whose waves are no shorter than the picture, so that a finer grid sees values between those
    of the coarse one: the harmonics of `sincos`, the default at 256 pixels, are shorter than its patches.
    """
    config = imagenet(preset, variant, latent_side)
    config.model.update({"positions": "sincos_phase", "remat": "full"})
    config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 1_000})
    return config


def video(
    preset: str, variant: str | None = None, frames: int = 20, height: int = 16, width: int = 30
) -> ConfigDict:
    """The recipe for clips in latents of 16 channels, with the embeddings of their captions.

    `data.dir` is a folder of shards as `python prepare.py videos` makes them (clips; an autoencoder such as
    CogVideoX's, a text encoder such as FLAN-T5), or `python prepare.py captions` (images: clips of one
    frame). Without data, try the speed: `--config.data.source=synthetic`.

    Variants: none, or `streaming`, which mixes by frames, with a time for each: a model that generates frame
    after frame with constant memory. Meshes and memory are as in `imagenet`: of tokens that
    `mesh.context` cuts PoM sends none. What is predicted of a clip is sent once a step, where the parts of
    the devices are no whole frames or rows of patches.

    Where the values come from:

    - The first paper: the network (figure 3), flow matching.
    - The authors' branch `text2video`: sizes, patches of 2 x 2 x 2, text of 64 tokens of 1,024 channels,
      latents 20 x 16 x 30, AdamW with learning rate 1e-3 as for images, 10 % of the captions dropped, one
      time for all frames and no mask by frames (an option there), w = 2 (a scale of 3).
    - Ours: a batch of 64, the length, continuous times, the variant `streaming`.
    - Not known here: how long the published model was trained, and on how many devices.

    Args:
        preset: name such as "Polymorpher-XL/2"; see `pom_jax.models.presets`.
        variant: what follows the colon of --config.
        frames, height, width: of the latents.

    Raises:
        InputError: an unknown preset or variant.
    """
    if variant not in (None, "", "streaming"):
        raise InputError(f"this recipe has no variant {variant!r}; give streaming, or leave it out")
    config = video_base()
    config.name = f"video_{preset.split('-', 1)[1].lower().replace('/', '')}"
    config.model.update(presets.preset(preset))
    config.model.update({"frames": frames, "frame_height": height, "frame_width": width})
    config.data.batch_size = 64
    if variant:
        config.name += "_streaming"
        config.model.frame_causal = True
        config.diffusion.frame_times = "independent"
    return config
