"""Diffusion as small parts that know nothing of networks: paths, schedules, losses, guidance, samplers.

Time t runs from 0 (data) to 1 (noise). A network is a function (x_t [B, ...], t [B]) -> [B, ...].
"""

from pom_jax.diffusion.frame_times import FRAME_TIMES as FRAME_TIMES
from pom_jax.diffusion.frame_times import FrameTimes as FrameTimes
from pom_jax.diffusion.frame_times import Times as Times
from pom_jax.diffusion.frame_times import draw_times as draw_times
from pom_jax.diffusion.frame_times import make_frame_times as make_frame_times
from pom_jax.diffusion.guidance import GUIDANCE_SCHEDULES as GUIDANCE_SCHEDULES
from pom_jax.diffusion.guidance import check_guidance as check_guidance
from pom_jax.diffusion.guidance import guide as guide
from pom_jax.diffusion.guidance import resolution_guidance as resolution_guidance
from pom_jax.diffusion.losses import BinnedLoss as BinnedLoss
from pom_jax.diffusion.losses import Losses as Losses
from pom_jax.diffusion.losses import diffusion_loss as diffusion_loss
from pom_jax.diffusion.losses import loss_by_bins as loss_by_bins
from pom_jax.diffusion.losses import validation_loss as validation_loss
from pom_jax.diffusion.paths import PREDICTIONS as PREDICTIONS
from pom_jax.diffusion.paths import FlowPath as FlowPath
from pom_jax.diffusion.paths import Predictions as Predictions
from pom_jax.diffusion.paths import VariancePath as VariancePath
from pom_jax.diffusion.paths import convert as convert
from pom_jax.diffusion.paths import make_path as make_path
from pom_jax.diffusion.paths import make_times as make_times
from pom_jax.diffusion.paths import target as target
from pom_jax.diffusion.samplers import DDIM as DDIM
from pom_jax.diffusion.samplers import SAMPLERS as SAMPLERS
from pom_jax.diffusion.samplers import SDE as SDE
from pom_jax.diffusion.samplers import DPMSolver as DPMSolver
from pom_jax.diffusion.samplers import Euler as Euler
from pom_jax.diffusion.samplers import Heun as Heun
from pom_jax.diffusion.samplers import sample as sample
from pom_jax.diffusion.schedules import TimeSampling as TimeSampling
from pom_jax.diffusion.schedules import resolution_shift as resolution_shift
from pom_jax.diffusion.schedules import sample_times as sample_times
from pom_jax.diffusion.schedules import shift_time as shift_time
from pom_jax.diffusion.schedules import time_grid as time_grid
from pom_jax.diffusion.schedules import variances as variances
