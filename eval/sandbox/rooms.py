"""A root directory in which there is nothing but Python's library, what the loader opens, and a program's folder.

Landlock guards what files hold; whether one is there, and how long it is, anybody may ask who can name it (``stat``).
In a root of its own a program has no name for other files. That takes namespaces, which some containers forbid: then
the other walls stand alone. Standard library only: the sandbox's processes import it without the rest of the package.
"""

import contextlib
import ctypes
import os

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000  # unshare's flags
_NO_SUID, _NO_DEVICES, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 4096, 16384, 1 << 18  # mount's
_DETACH = 2  # umount2's


def move_in(folder: str, library: str, hidden: list[str], files: list[str], links: list[tuple[str, str]]) -> bool:
    """Leave ``folder``, the program's, and of all else the folder ``library`` without its entries ``hidden``, ``files``
    and the symbolic ``links``, each under its own name; False, with nothing changed, where the system does not let us.

    To be called before the user changes, by a process with a single thread that holds no folder open. Nothing is ever
    created outside the new root, which is a file system in memory: all names are made in it, and none may be there,
    before the first real file is mounted under one of them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not _separate(libc):
        return False
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)  # what it is before something is put over it
    before = os.stat(folder).st_dev
    try:
        _mount(libc, "none", "/", None, _RECURSIVE | _PRIVATE)
        _mount(libc, "tmpfs", folder, "tmpfs", _NO_SUID | _NO_DEVICES, "mode=755,size=1m")
    except OSError:
        os.close(handle)
        return False
    try:
        if os.stat(folder).st_dev == before:
            raise OSError("there is no new root")
        elsewhere = [path for path in files if not _is_below(path, library)]
        links = [(link, target) for link, target in links if not _is_below(link, library)]
        _make_names(folder, [library, folder], elsewhere, links)
        for path in (library, *elsewhere):
            _mount(libc, path, folder + path, None, _BIND | _RECURSIVE)
        for name in hidden:
            if os.path.isdir(os.path.join(library, name)):
                _mount(libc, "tmpfs", folder + os.path.join(library, name), "tmpfs", _NO_SUID | _NO_DEVICES, "mode=0")
        _mount(libc, f"/proc/self/fd/{handle}", folder + folder, None, _BIND)
        os.chdir(folder)
        os.chroot(".")
    except OSError:
        libc.umount2(os.fsencode(folder), _DETACH)
        return False
    finally:
        os.close(handle)
    os.chdir("/")
    return True


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _make_names(root: str, folders: list[str], files: list[str], links: list[tuple[str, str]]) -> None:
    """Empty folders and files below ``root`` to mount others at, and symbolic links; an error for one that is there."""
    for path in folders:
        os.makedirs(root + path, exist_ok=True)
    for path in files:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.close(os.open(root + path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    for link, target in links:
        os.makedirs(os.path.dirname(root + link), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink(target, root + link)


def _separate(libc) -> bool:
    """Into mounts of our own; as an ordinary user also into a user namespace, in which we are who we were."""
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_NEW_MOUNTS | (_NEW_USER if uid else 0)):
        return False
    try:
        if uid:
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
    except OSError:
        return False
    return True


def _mount(libc, source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    coded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    if libc.mount(*coded, ctypes.c_ulong(flags), os.fsencode(data)):
        raise OSError(ctypes.get_errno(), f"mount {target}")
