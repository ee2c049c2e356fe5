"""Lets the kernel fail system calls of this process, as it does for a broken disk or a mount that is gone."""

import ctypes
import platform
import sys

# seccomp, fsync, fdatasync
NUMBERS = {"x86_64": (317, 74, 75), "aarch64": (277, 82, 83)}
CAN_FAIL = sys.platform == "linux" and platform.machine() in NUMBERS

NO_NEW_PRIVILEGES, SET_FILTER, ALL_THREADS = 38, 1, 1
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of the filter
FAIL, ALLOW = 0x00050000, 0x7FFF0000


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("then", ctypes.c_uint8), ("or_else", ctypes.c_uint8))
    _fields_ += (("operand", ctypes.c_uint32),)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def fail_syncs(error: int) -> None:
    """From here on what waits until a file is on the disk fails with this errno, in all threads."""
    seccomp, fsync, fdatasync = NUMBERS[platform.machine()]
    instructions = [
        _Instruction(LOAD, 0, 0, 0),  # the number of the system call
        _Instruction(EQUAL, 2, 0, fsync),
        _Instruction(EQUAL, 1, 0, fdatasync),
        _Instruction(RETURN, 0, 0, ALLOW),
        _Instruction(RETURN, 0, 0, FAIL | error),
    ]
    program = _Program(len(instructions), (_Instruction * len(instructions))(*instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(
        seccomp, SET_FILTER, ALL_THREADS, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter")
