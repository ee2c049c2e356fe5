"""A reference of which the network has to see the images once only, whatever commands use it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pom_jax.errors import InputError
from pom_jax.evaluation.inception_weights import InceptionWeights
from pom_jax.evaluation.reference import (
    OpenReference,
    Reference,
    fit_reference,
    read_reference,
    save_reference,
)
from pom_jax.sampling import SamplingProgress


@dataclass
class KeptReference:
    """Real images that are put through the network when they are first needed, and once for all commands.

    Attributes:
        opened: from `open_reference`.
        weights: of Inception.
        kept: folder for what the network made of the images.
        out: where the user wants it besides.
        say: told what happens.
        fitted: what came of it.
    """

    opened: OpenReference
    weights: InceptionWeights
    kept: Path
    out: str | Path | None
    say: Callable[[str], None]
    fitted: Reference | None = field(default=None, init=False)

    @property
    def digest(self) -> str:
        """Tells these images and weights from others, in file names."""
        return hashlib.sha256(f"{self.opened.protocol} {self.weights.sha256}".encode()).hexdigest()[:8]

    def fit(self) -> Reference:
        """Reads what was kept or computes it, the first time.

        Raises:
            InputError: see `fit_reference`; no room on the disk.
        """
        if self.fitted is None:
            self.say(f"reference: {self.opened.protocol}")
            self.fitted = self._read() or self._compute()
            if self.out is not None:
                save_reference(self.out, self.fitted, self.weights)
                self.say(f"written: {self.out} (statistics and features of the reference)")
        return self.fitted

    @property
    def _file(self) -> Path:
        return self.kept / f"{self.digest}.npz"

    def _read(self) -> Reference | None:
        """What an earlier command computed of the same reference."""
        if not self._file.is_file():
            return None
        try:
            found = read_reference(self._file)
        except InputError as error:
            self.say(f"warning: {error}; it is computed again")
            return None
        self.say(f"its statistics are in {self._file}")
        return found

    def _compute(self) -> Reference:
        with SamplingProgress() as progress:
            found = fit_reference(self.opened, self.weights, progress=progress)
        if self.opened.images is not None:
            save_reference(self._file, found, self.weights)
        return found
