"""Captions -> embeddings by a published text encoder such as FLAN-T5, with the masks of their tokens."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pom_jax.data.fields import Field
from pom_jax.data.torch_models import find_device, load_model, require, weights_sha256
from pom_jax.errors import InputError, first_line

FLAG = "--text-encoder"
BATCH = 32  # captions at a time


class TextEncoder:
    """Embeds captions in torch.

    Args:
        folder: a text encoder of transformers with its tokenizer, e.g. FLAN-T5's: config.json, safetensors
            (of a T5 its encoder is used) and tokenizer.json or spiece.model.
        tokens: M, to which captions are filled up, or cut.
        device: of torch; the first GPU, if there is one.
        precision: "float32" or "bfloat16", of the computation.
        say: is told how far the checksum of large weights is.

    Attributes:
        tokens: M.
        fields: `text` float16 [M, D] and `text_mask` uint8 [M].
        name: of the folder, and the checksum of its weights.
        settings: what decides the embeddings, in words.

    Raises:
        InputError: packages that are not installed, no such encoder, M below 1 or beyond what it can read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tokens: int = 64,
        *,
        device: str | None = None,
        precision: str = "float32",
        say: Callable[[str], None] = lambda _: None,
    ):
        folder = Path(folder)
        if tokens < 1:
            raise InputError(f"--tokens={tokens} must be at least 1")
        self._model = load_model("transformers", "AutoModelForTextEncoding", folder, FLAG, device, precision)
        self._tokenizer = _load_tokenizer(folder, self._model.config.vocab_size)
        most = getattr(self._model.config, "max_position_embeddings", None)
        if most is not None and tokens > most:
            raise InputError(f"--tokens={tokens}: the text encoder of {folder} reads at most {most}")
        self.tokens, self._device = tokens, find_device(device)
        self.fields: Mapping[str, Field] = {
            "text": Field("float16", (tokens, self._model.config.hidden_size)),
            "text_mask": Field("uint8", (tokens,)),
        }
        digest = weights_sha256(folder, say)
        self.name = f"{folder.resolve().name} sha256:{digest}"
        self.settings: Mapping[str, str] = {
            "text_encoder": f"sha256:{digest}",
            "tokens": str(tokens),
            "text_precision": precision,
        }

    def __call__(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """`text` float16 [N, M, D], zeros where there is no token, and `text_mask` uint8 [N, M]."""
        parts = [self._encode(captions[start : start + BATCH]) for start in range(0, len(captions), BATCH)]
        return {
            name: np.concatenate([np.zeros((0, *field.shape), field.dtype), *(part[name] for part in parts)])
            for name, field in self.fields.items()
        }

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption, which is cut if there are more than M."""
        return [len(self._tokenizer(caption, verbose=False).input_ids) for caption in captions]

    def _encode(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        torch = require("torch", FLAG)
        tokens = self._tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.tokens,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            found = self._model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        mask = tokens.attention_mask.to(torch.uint8)
        text = torch.where(mask[..., None].bool(), found.last_hidden_state.float(), 0.0)
        return {"text": text.cpu().numpy().astype(np.float16), "text_mask": mask.cpu().numpy()}


def _load_tokenizer(folder: Path, vocabulary: int) -> Any:
    try:
        tokenizer = require("transformers", FLAG).AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{FLAG}={folder} has no tokenizer: {first_line(error)}") from error
    names = sorted(set(tokenizer.vocab_files_names.values()))
    if not any((folder / name).is_file() for name in names):  # transformers makes up one that knows no words
        raise InputError(f"{FLAG}={folder} has no tokenizer: put {' or '.join(names)} there")
    if len(tokenizer) > vocabulary:
        raise InputError(
            f"{FLAG}={folder}: its tokenizer has {len(tokenizer)} tokens, the encoder {vocabulary}; put the "
            "encoder's own there"
        )
    return tokenizer
