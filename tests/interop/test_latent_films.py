"""Films of a model of latents: prompts by a published text encoder, pixels by a video autoencoder."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from pom_jax.errors import InputError
from pom_jax.sampling import VideoGenerator
from pom_jax.sampling.video_decode import load_text_encoder, load_video_decoder
from tests.interop.test_video_data import autoencoder, text_encoder  # noqa: F401 (fixtures)
from tests.test_video_sampling import tiny_generator


def test_prompts_are_embedded_and_latents_decoded(autoencoder: Path, text_encoder: Path) -> None:  # noqa: F811
    plain = tiny_generator(
        vocabulary=0, text_length=8, text_width=16, channels=4, frame_height=2, frame_width=4
    )
    generator = VideoGenerator(
        plain.config,
        plain.model,
        plain.params,
        decoder=load_video_decoder(autoencoder, plain.config),
        text_encoder=load_text_encoder(text_encoder, plain.model),
    )
    films = generator.sample(["a red square moves left", "a blue square"], 4, steps=1)
    assert (films.dtype, films.shape) == (np.uint8, (2, 16, 16, 32, 3))
    assert np.ptp(films) > 0
    with pytest.raises(InputError, match="whole chunks of 2 frames"):
        generator.sample(["a blue square"], 3, steps=1)
    with pytest.raises(InputError, match="frames=2 after 1 frames"):
        generator.check_pixels(2, start=1)
    with pytest.raises(InputError, match="9 tokens, this model reads at most 8"):
        generator.texts(["a red square moves left right left right"])
    with pytest.raises(InputError, match="empty"):
        generator.texts(["a red square", " "])
    with pytest.raises(InputError, match="embeddings of 16 channels, the model reads 4"):
        load_text_encoder(text_encoder, tiny_generator(vocabulary=0).model)
    with pytest.raises(InputError, match="latents of 4 channels, the model draws 16"):
        load_video_decoder(autoencoder, tiny_generator(channels=16).config)
