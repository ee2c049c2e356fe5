"""Lengths of time as people read them."""


def duration(seconds: float) -> str:
    """3725.0 -> "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
