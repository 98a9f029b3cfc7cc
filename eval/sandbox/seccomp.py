"""A list of the system calls that a sandboxed process may make, enforced by the kernel (seccomp, filter mode).

Everything else fails with "operation not permitted": no new process or thread, no program started, no socket of any
kind, no signal to anybody, no change of a file's mode, owner or times (which Landlock does not guard).
"""

import ctypes
import platform
import struct

ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
EPERM, ENOTTY = 1, 25
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF instructions
_NUMBER, _ARCHITECTURE, _SECOND_ARGUMENT = 0, 4, 24  # offsets in struct seccomp_data
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # prctl's names for them

# machine -> (the kernel's architecture number, column of the table below)
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# what Python needs to compute and to use files: name -> number on x86_64, on aarch64 (None: there is no such call)
CALLS = {
    **{"read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80)},
    **{"lstat": (6, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215)},
    **{"brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139)},
    **{"pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "access": (21, None)},
    **{"poll": (7, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233)},
    **{"dup": (32, 23), "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103)},
    **{"getpid": (39, 172), "exit": (60, 93), "wait4": (61, 260), "uname": (63, 160), "flock": (73, 32)},
    **{"fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46), "getcwd": (79, 17), "rename": (82, None)},
    **{"unlink": (87, None), "readlink": (89, None), "gettimeofday": (96, 169), "getrlimit": (97, 163)},
    **{"getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176)},
    **{
        "geteuid": (107, 175),
        "getegid": (108, 177),
        "getppid": (110, 173),
        "getgroups": (115, 158),
        "sigaltstack": (131, 132),
    },
    **{"gettid": (186, 178), "time": (201, None), "futex": (202, 98), "sched_getaffinity": (204, 123)},
    **{"getdents64": (217, 61), "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114)},
    **{"clock_nanosleep": (230, 115), "exit_group": (231, 94), "openat": (257, 56), "newfstatat": (262, 79)},
    **{"unlinkat": (263, 35), "renameat": (264, 38), "readlinkat": (267, 78), "faccessat": (269, 48)},
    **{"pselect6": (270, 72), "ppoll": (271, 73), "renameat2": (316, 276), "getrandom": (318, 278)},
    **{"statx": (332, 291), "faccessat2": (439, 439)},
}
# fcntl can also send signals (F_SETOWN, F_SETSIG): only duplicating and asking for flags are let through
_FCNTL, _FCNTL_COMMANDS = (72, 25), (0, 1, 2, 3, 1030)
_IOCTL = (16, 29)  # open() asks it whether a file is a terminal, and expects this "no"


class Unavailable(Exception):
    """The kernel does not offer a wall; the message says which."""


def allow_only_computing() -> None:
    """Put this process, for good, under the list above. It must have a single thread."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise Unavailable(f"no list of system calls for {machine}; there are {', '.join(MACHINES)}")
    architecture, column = MACHINES[machine]
    program = [*_check(architecture)]
    for numbers in CALLS.values():
        number = numbers[column]
        if number is not None:
            program += _rule(number, ALLOW)
    program += _rule(_IOCTL[column], ERRNO | ENOTTY)
    program += [(_IF_EQUAL, 0, 2 * len(_FCNTL_COMMANDS) + 1, _FCNTL[column]), (_LOAD, 0, 0, _SECOND_ARGUMENT)]
    for command in _FCNTL_COMMANDS:
        program += _rule(command, ALLOW)
    install([*program, (_RETURN, 0, 0, ERRNO | EPERM)])


def refuse(calls: dict[int, int]) -> None:
    """Let some system calls (number on this machine -> error number) fail, and allow all others."""
    program = [*_check(MACHINES[platform.machine()][0])]
    for number, error in calls.items():
        program += _rule(number, ERRNO | error)
    install([*program, (_RETURN, 0, 0, ALLOW)])


def _check(architecture: int) -> list[tuple[int, int, int, int]]:
    """Numbers mean other calls under another architecture (32-bit calls on a 64-bit kernel): that ends the process."""
    load = (_LOAD, 0, 0, _ARCHITECTURE)
    return [load, (_IF_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, KILL), (_LOAD, 0, 0, _NUMBER)]


def _rule(value: int, action: int) -> list[tuple[int, int, int, int]]:
    return [(_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, action)]


def install(program: list[tuple[int, int, int, int]]) -> None:
    """Hand a BPF program of (code, jump if true, jump if false, constant) to the kernel, with no new privileges."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    handed = Program(len(program), ctypes.addressof(buffer))
    zero = ctypes.c_ulong(0)
    if libc.prctl(_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), zero, zero, zero):
        raise Unavailable("the kernel cannot forbid new privileges (prctl PR_SET_NO_NEW_PRIVS)")
    if libc.prctl(_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.byref(handed), zero, zero):
        raise Unavailable(f"the kernel cannot filter system calls (seccomp, error {ctypes.get_errno()})")
