"""What the storage library prints of an error that it also raises, kept to one message."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from absl import logging


def hide_tracebacks() -> None:
    """Drops the tracebacks that the storage's threads log of errors that they also raise."""
    logging.get_absl_logger().addFilter(_comes_as_message)


def _comes_as_message(record: Any) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


@contextlib.contextmanager
def one_error() -> Iterator[None]:
    """Keeps the storage's threads quiet after its first error.

    Each leaf still under way would print a traceback, that the event loop is closed.
    """
    before = sys.unraisablehook
    sys.unraisablehook = lambda told: None if str(told.exc_value) == "Event loop is closed" else before(told)
    try:
        yield
    except Exception:
        time.sleep(0.2)  # what is still being read ends here
        raise
    finally:
        sys.unraisablehook = before
