"""Images and films from trained models, and their pictures and files."""

from pom_jax.sampling.generate import Generator as Generator
from pom_jax.sampling.generate import load as load
from pom_jax.sampling.pictures import grid as grid
from pom_jax.sampling.pictures import sheet as sheet
from pom_jax.sampling.progress import SamplingProgress as SamplingProgress
from pom_jax.sampling.stream import StreamedFrames as StreamedFrames
from pom_jax.sampling.stream import StreamState as StreamState
from pom_jax.sampling.video import VideoGenerator as VideoGenerator
from pom_jax.sampling.video import load_video as load_video
from pom_jax.sampling.writers import write as write

show = grid  # its name in a notebook: `pom_jax.show`
