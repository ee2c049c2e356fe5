"""Data sets as shards, and the way from shards to batches on the device.

`manifest`, `fields` and `writer` define the format, `records` and `synthetic` read it or imitate it,
`sources` chooses, `pipeline` orders, batches and prefetches. `digits` and `moving_digits` make sets that need
no download; `images` and `captioned_jobs` plan what `making` makes in `unfinished` folders.
"""

from pom_jax.data.manifest import Field as Field
from pom_jax.data.manifest import Manifest as Manifest
from pom_jax.data.manifest import read_manifest as read_manifest
from pom_jax.data.records import Records as Records
from pom_jax.data.sources import Source as Source
from pom_jax.data.sources import open_source as open_source
from pom_jax.data.synthetic import Synthetic as Synthetic
from pom_jax.data.writer import Writer as Writer
