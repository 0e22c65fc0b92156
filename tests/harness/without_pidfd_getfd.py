#!/usr/bin/env python3
"""Runs a program that may not duplicate descriptors of other processes, as in a container whose
seccomp profile forbids it (Docker's does, without CAP_SYS_PTRACE). All that it starts is bound likewise.

    tests/harness/without_pidfd_getfd.py PROGRAM [ARGUMENT...]
"""

import ctypes
import errno
import os
import struct
import sys

PIDFD_GETFD = 438  # on x86-64
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF instructions


def forbid():
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (LOAD_WORD, 0, 0, 0),  # the number of the system call
            (JUMP_IF_EQUAL, 0, 1, PIDFD_GETFD),
            (RETURN, 0, 0, RET_ERRNO | errno.EPERM),
            (RETURN, 0, 0, RET_ALLOW),
        )
    )
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions))
    library = ctypes.CDLL(None, use_errno=True)
    for request in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)):
        if library.prctl(*request) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {request[0]}")


if __name__ == "__main__":
    forbid()
    os.execvp(sys.argv[1], sys.argv[1:])
