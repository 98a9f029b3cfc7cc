"""What shuts a process in, from the inside and for good: another user, no network, few files, hard limits.

Standard library only, and nothing of emkit: the sandbox's processes import it without the rest of the package.
"""

import ctypes
import os
import resource
import signal
import stat
import sysconfig

import seccomp
from seccomp import Unavailable

_NEW_USER, _NEW_NETWORK, _NEW_IPC = 0x10000000, 0x40000000, 0x08000000  # unshare's flags
_PARENT_DEATH = 1  # prctl PR_SET_PDEATHSIG
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # Landlock's system calls, the same numbers on every machine
_WRITE_FILE, _READ_FILE, _READ_DIRECTORY, _REMOVE_FILE, _MAKE_FILE, _TRUNCATE = (1 << i for i in (1, 2, 3, 5, 8, 14))
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # Landlock version -> number of rights over files; 16 from version 5 on
# uids no one has: far above those that systems hand out, or, where a container knows few uids, above its users
_UIDS = (0x70000000, 40_000)
_UIDS_EACH = (0x400000, 20_000)
_LOADER = "/etc/ld.so.cache"  # where the loader looks up the libraries of Python's own modules
_NOT_PYTHON = ("site-packages", "dist-packages", "test", "idlelib", "ensurepip")  # in the library's folder


def become_nobody(folder: str | None) -> None:
    """As root, become a uid that nobody has, without groups and capabilities, which then owns ``folder``.

    As an ordinary user, stay who we are. Both leave the network: into a namespace with no interface where the system
    lets us (elsewhere the list of system calls alone forbids sockets).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0:
        libc.unshare(_NEW_USER | _NEW_NETWORK | _NEW_IPC)
    else:
        libc.unshare(_NEW_NETWORK | _NEW_IPC)
        try:
            os.setgroups([])
        except OSError as error:
            raise Unavailable(f"as root, its groups cannot be given up: {error.strerror}") from error
        _take_uid(folder)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none):
        raise Unavailable("capabilities cannot be given up")


def _take_uid(folder: str | None) -> None:
    """Become the first uid, of those that belong to this process alone, that the system lets us take."""
    for first, count in zip(_UIDS, _UIDS_EACH):
        uid = first + os.getpid() % count
        try:
            os.setresgid(uid, uid, uid)
            if folder is not None:
                os.chown(folder, uid, uid)
            os.setresuid(uid, uid, uid)
            return
        except OSError:
            continue
    raise Unavailable("as root, no unprivileged user can be taken: is this container one that knows of root alone?")


def die_with(parent: int) -> None:
    """Be killed when ``parent`` ends, however it ends. To be called after the user has changed, which undoes it."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def limit(cpu_seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Hard limits: CPU time (then SIGKILL), address space, size of a file, open files; no process, no core dump."""
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def library() -> list[str]:
    """The folders of the standard library, its compiled part last."""
    folder = sysconfig.get_path("stdlib")
    return [folder, os.path.join(folder, "lib-dynload")]


def hidden() -> tuple[str, ...]:
    """What lies in the library's folder and is none of it."""
    return _NOT_PYTHON


def loader() -> list[str]:
    """Where the loader looks names of libraries up, if it is there."""
    return [_LOADER] if os.path.exists(_LOADER) else []


def readable(linked: list[str]) -> list[str]:
    """What a sandboxed process may read: what is in the standard library's folder but packages that were installed
    there, and ``linked``, the files that it is linked with. Not the folder itself, which holds those packages."""
    folder = library()[0]
    inside = [os.path.join(folder, name) for name in os.listdir(folder) if name not in _NOT_PYTHON]
    return [path for path in (*inside, *linked, _LOADER) if os.path.exists(path)]


def shut_files(readable: list[int], folder: int | None) -> None:
    """Landlock: read below the open folders and files ``readable``, which are then closed, make and change plain files
    in ``folder``, nothing else; and, where the kernel can, no TCP and no signal or abstract socket beyond this process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        raise Unavailable("the kernel cannot restrict files (Landlock: Linux 5.13 or newer, with it switched on)")
    every = (1 << _RIGHTS.get(version, 16)) - 1
    attributes = (ctypes.c_uint64 * 3)(every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    rules = libc.syscall(_CREATE, attributes, ctypes.c_size_t(24), ctypes.c_uint32(0))
    if rules < 0:
        raise Unavailable(f"the kernel cannot restrict files (Landlock, error {ctypes.get_errno()})")
    for handle in readable:
        below = _READ_DIRECTORY if stat.S_ISDIR(os.fstat(handle).st_mode) else 0
        _add(libc, rules, handle, (_READ_FILE | below) & every)
        os.close(handle)
    if folder is not None:
        use = _READ_FILE | _READ_DIRECTORY | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE
        _add(libc, rules, folder, use & every)
    libc.prctl(38, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)  # no new privileges, which both walls demand
    if libc.syscall(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0)):
        raise Unavailable(f"the kernel cannot restrict files (Landlock, error {ctypes.get_errno()})")
    os.close(rules)


def _add(libc, rules: int, handle: int, rights: int) -> None:
    rule = rights.to_bytes(8, "little") + handle.to_bytes(4, "little")
    if libc.syscall(_ADD, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint32(0)):
        raise Unavailable(f"the kernel cannot restrict files (Landlock, error {ctypes.get_errno()})")


def shut_calls() -> None:
    """Only the system calls of :mod:`seccomp`'s list from here on."""
    seccomp.allow_only_computing()
