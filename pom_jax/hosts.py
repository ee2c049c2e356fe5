"""Which of several hosts this process is, where they share work through folders that all of them see."""

import jax

from pom_jax.errors import InputError


def this_host(host: int | None = None, hosts: int | None = None) -> tuple[int, int]:
    """The number of this host, from 0, and how many there are.

    Args:
        host, hosts: as given by hand, both or neither; those of jax.distributed where they are left out.

    Raises:
        InputError: one without the other, or a number out of range.
    """
    if host is None and hosts is None:
        return jax.process_index(), jax.process_count()
    if host is None:
        raise InputError(f"--hosts={hosts} goes with --host=I: which of them is this, from 0?")
    if hosts is None:
        raise InputError(f"--host={host} goes with --hosts=N: how many are there?")
    if hosts < 1:
        raise InputError(f"--hosts={hosts} must be at least 1")
    if not 0 <= host < hosts:
        raise InputError(f"--host={host} must be from 0 to {hosts - 1}, as --hosts={hosts}")
    return host, hosts
