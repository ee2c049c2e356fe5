"""The Inception Score: are images recognised, and of many classes? (Salimans et al., 2016, 1606.03498)"""

import numpy as np

from pom_jax.errors import InputError

PART = 5000
SHUFFLE = 2020  # the seed with which samples of a folder are shuffled; torch-fidelity's


def inception_score(logits: np.ndarray, part: int = PART, *, seed: int | None = None) -> float:
    """exp of the mean KL divergence from each image's classes to those of its part, averaged over the parts.

    Args:
        logits: [N, 1008] in the order of the samples: the score of a part is low where the part holds few
            classes.
        part: images a part, the last one being what is left; 5000 as in ADM's suite. The ten parts of the
            paper are `part=N // 10`, the same for 50,000 images.
        seed: shuffles the samples first, for those whose classes stand together; None leaves their order.

    Returns:
        1 (nothing recognised, or all of one class) to 1008, in float64.

    Raises:
        InputError: no images, or a part that is not positive.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not len(logits) or part < 1:
        raise InputError(
            f"logits {list(logits.shape)} and part={part}: logits are [N, classes], part is >= 1"
        )
    if seed is not None:
        logits = np.random.default_rng(seed).permutation(logits)
    scores = []
    for start in range(0, len(logits), part):
        x = logits[start : start + part]
        x = x - x.max(axis=1, keepdims=True)
        log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        # A class whose mean underflows to zero has p = 0 in every image, and p log p -> 0.
        log_mean = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))
    return float(np.mean(scores))
