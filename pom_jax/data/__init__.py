"""Data sets as shards, and the way from shards to batches on the device.

`manifest` and `writer` define the format, `records` and `synthetic` read it or imitate it, `sources` chooses,
`pipeline` orders, batches and prefetches; `digits` makes the one data set that needs no download.
"""

from pom_jax.data.manifest import Field, Manifest, read_manifest
from pom_jax.data.records import Records
from pom_jax.data.sources import Source, open_source
from pom_jax.data.synthetic import Synthetic
from pom_jax.data.writer import Writer

__all__ = ["Field", "Manifest", "Records", "Source", "Synthetic", "Writer", "open_source", "read_manifest"]
