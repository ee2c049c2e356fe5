"""Where the digit is in each frame of a clip, and how it moves, from the ink alone.

Frames are [..., S, S] in 0 to 16, as the digits are stored; places are (row, column) in pixels.
"""

import numpy as np

from pom_jax.data.moving_digits import SIDE, STEPS, path

HIGHEST = 16.0  # brightest pixel
FAINT = 2.5  # what is no brighter is no ink, so that noise which the eye hardly sees moves no centroid
MIDDLE = (SIDE - 1) / 2  # of a digit's square, from its upper left pixel
REACH = 1.25  # pixels from there to the centroid of its ink: no real digit has more


def frames_of(clips: np.ndarray) -> np.ndarray:
    """Clips [N, T, S, S, 1] as frames [N, T, S, S] in 0 to 16.

    Args:
        clips: float in [-1, 1], or uint8 pixels up to 255. What lies outside is clipped; a frame with a value
            that is not finite is black.
    """
    clips = np.asarray(clips)[..., 0]
    if clips.dtype == np.uint8:
        return clips.astype(np.float32) * np.float32(HIGHEST / 255)
    finite = np.isfinite(clips).all(axis=(-2, -1), keepdims=True)
    return np.clip(np.where(finite, clips + 1, 0) * (HIGHEST / 2), 0, HIGHEST).astype(np.float32)


def locate(frames: np.ndarray) -> np.ndarray:
    """The centroid of the ink: frames [..., S, S] -> [..., 2], NaN where there is no ink.

    Ink is what is brighter than 2.5 of 16, weighed by its brightness.
    """
    ink = np.where(frames > FAINT, frames, 0).astype(np.float64)
    places = np.arange(frames.shape[-1])
    moments = np.stack([ink.sum(axis=-1) @ places, ink.sum(axis=-2) @ places], axis=-1)
    with np.errstate(invalid="ignore"):
        return moments / ink.sum(axis=(-2, -1))[..., None]


def crop(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The square of a digit's size round each centroid: [..., S, S], [..., 2] -> [..., 8, 8].

    Black beyond the edges, and wholly black where the centroid is NaN. Whole pixels are taken, so a digit
    that moves by whole pixels has the same square everywhere.
    """
    flat = np.pad(frames.reshape(-1, *frames.shape[-2:]), [(0, 0), (SIDE, SIDE), (SIDE, SIDE)])
    corners = np.floor(np.nan_to_num(centroids) - MIDDLE + 0.5).astype(int).reshape(-1, 2) + SIDE
    rows, columns = (corners[:, axis, None] + np.arange(SIDE) for axis in (0, 1))
    squares = flat[np.arange(len(flat))[:, None, None], rows[:, :, None], columns[:, None, :]]
    found = squares.reshape(*frames.shape[:-2], SIDE, SIDE)
    return np.where(np.isnan(centroids[..., :1, None]), 0, found)


def fit_starts(centroids: np.ndarray, direction: np.ndarray, room: int) -> np.ndarray:
    """Where clips began whose start nobody gave: the place along the way that fits their centroids best.

    A place counts if the first step from it is free, and if the first frame's centroid is one that a digit
    there could have (1.25 pixels round its middle; the nearest place if none is). So a clip that sets out the
    wrong way is not excused by a bounce that it never made. Of those it is the one from which `path` differs
    least from the centroids, shifted by at most as much: sum of squares over the first 2 room frames, which
    pass each place twice. What slips out of step later counts as wrong.

    Args:
        centroids: [N, T, 2], NaN where unknown.
        direction: [N] index into DIRECTIONS.
        room: pixels that a digit can move.

    Returns:
        [N, 2] int, row and column of the upper left pixel; across the way what is nearest to the first frame.
    """
    clips, axis = np.arange(len(centroids)), np.abs(STEPS[direction]).argmax(axis=1)
    seen = centroids[:, : 2 * room]
    frames = seen.shape[1]
    places = np.arange(room + 1)
    starts = np.broadcast_to(places[:, None, None], (room + 1, len(clips), 2))
    paths = path(starts, np.broadcast_to(direction, (room + 1, len(clips))), frames, room)
    off = seen[clips, :, axis] - MIDDLE - paths[:, clips, :, axis].swapaxes(0, 1)  # [places, N, frames]
    known = ~np.isnan(off)
    count = np.maximum(known.sum(axis=2), 1)
    shift = np.clip(np.nansum(off, axis=2) / count, -REACH, REACH)
    misfit = np.nansum((off - shift[..., None]) ** 2, axis=2) / count
    beyond = np.nan_to_num(np.maximum(np.abs(off[..., 0]) - REACH, 0))
    step = STEPS[direction][clips, axis]
    blocked = places[:, None] == np.where(step > 0, room, 0)
    cost = np.where(blocked, np.inf, misfit + (room + SIDE) ** 2 * beyond)  # a misfit is less than that
    across = np.clip(np.nan_to_num(np.round(centroids[:, 0] - MIDDLE)), 0, room).astype(int)
    across[clips, axis] = cost.argmin(axis=0)
    return across


def score_steps(centroids: np.ndarray, paths: np.ndarray) -> dict[str, np.ndarray]:
    """Whether each step is right: centroids and true places [N, T, 2] -> names to bool [N, T - 1].

    direction: along the way of the true step, at least a quarter of a pixel to the same side; across it, less
        than half a pixel to either.
    speed: the step is 1 pixel long, give or take less than half a pixel, wherever it leads. Centroids of
        noise make many such steps: read it beside `direction`, or take `on_path`.
    on_path: in both axes less than half a pixel off the true step.

    All are False where there is no ink in one of the two frames.
    """
    made, true = np.diff(centroids, axis=1), np.diff(paths, axis=1)
    along = (made * true).sum(axis=-1)
    across = np.abs(np.where(true == 0, made, 0)).max(axis=-1)
    length = np.sqrt((made**2).sum(axis=-1))
    return {
        "direction": (along >= 0.25) & (across < 0.5),
        "speed": np.abs(length - 1) < 0.5,
        "on_path": np.abs(made - true).max(axis=-1) < 0.5,
    }
