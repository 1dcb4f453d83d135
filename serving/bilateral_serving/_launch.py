"""Start a program that ends when its parent does: `python _launch.py PARENT_PID PROGRAM ARG...`.

The kernel sends this process SIGTERM when its parent dies, however it dies (prctl(2),
PR_SET_PDEATHSIG), and the setting survives execve(2). Doing this here and not in a `preexec_fn`
keeps Python from running between fork and exec of a process that has threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Let the kernel send this process SIGTERM when `parent` ends."""
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM)) != 0:
        sys.exit("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the line above
        sys.exit(0)


def main(parent: int, command: list[str]) -> None:
    """Tie this process's life to `parent`'s and become `command`."""
    end_with(parent)
    os.umask(0o077)  # its sockets and shared memory are this user's only
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
