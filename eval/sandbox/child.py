"""The sandbox's two processes: one checks, the other runs what a model wrote. Started by :mod:`eval.sandbox`.

The checking process starts first, forks the untrusted one before it knows anything, and then shuts itself in, too. The
program goes to the untrusted process, the tests never do: it is asked for one call at a time and answers with plain
data (:mod:`wire`), which the checking process compares. What the program does to ``assert``, to its builtins, to its
output or to its own process changes nothing but its own answers.
"""

import importlib.machinery
import json
import os
import random
import sys
import traceback
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import raised
import rooms
import serving
import walls
import wire
from seccomp import Unavailable
from untrusted import Ended, Held, Refused, Untrusted


def check(job: dict, untrusted: Untrusted) -> tuple[str, str]:
    """Run the program and its tests: (status, detail)."""
    try:
        untrusted.ask({"program": job["program"]})
    except Exception as error:
        return _failure(error, "the program: ")
    if "calls" in job:
        return _check_calls(wire.loads(job["calls"], untrusted.number), untrusted)
    namespace = {"__name__": "tests"}
    try:
        exec(compile(job["prelude"], "<prelude>", "exec"), namespace)
        namespace |= {name: Held(name, untrusted) for name in job["names"]}
        exec(compile(job["tests"], "<tests>", "exec"), namespace)
    except Exception as error:
        return _failure(error, _place(error, job["tests"]))
    return "passed", ""


def _check_calls(calls: list, untrusted: Untrusted) -> tuple[str, str]:
    for expression, expected in calls:
        try:
            value = untrusted.ask({"eval": expression})
            if value != expected:
                return "failed", f"{expression} is {value!r}, not {expected!r}"
        except Exception as error:  # of a number too long to be written, too
            return _failure(error, f"{expression}: ")
    return "passed", ""


def _failure(error: Exception, where: str) -> tuple[str, str]:
    text = f"{where}{type(error).__name__}: {raised.text(error)}".removesuffix(": ")
    return ("memory" if isinstance(error, MemoryError) else "failed"), text


def _place(error: Exception, tests: str) -> str:
    """The innermost line of the tests that was being run."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<tests>"]
    return f"{tests.splitlines()[lines[-1] - 1].strip()}: " if lines and lines[-1] else ""


# ------------------------------------------------------------------------------------------------ start
def read_library_by_handle() -> list[int]:
    """Import from open folders, which are returned: the user we become may not be able to walk to them (Python below
    /root)."""
    named = [path for path in walls.library() if os.path.isdir(path)]
    handles = [os.open(path, os.O_PATH) for path in named]
    import_from([f"/proc/self/fd/{handle}" for handle in handles], named[0])
    return handles


def import_from(folders: list[str], instead_of: str) -> None:
    """Import from ``folders``, the library's; packages that were imported from ``instead_of`` are in the first, too.

    What is in them is looked up now: they may not be listed later, as site-packages is in one of them.
    """
    sys.path[:] = folders
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        if path := getattr(module, "__path__", None):
            module.__path__ = [folder.replace(instead_of, folders[0], 1) for folder in path]
    importlib.machinery.PathFinder.find_spec("a_name_that_no_module_has")


def move_in(folder: str, files: list[str], links: list, handles: list[int]) -> None:
    """Into a root of our own, where the system allows that, and then import by the library's own name: from an open
    folder (one of ``handles``) one can walk back out."""
    library = [path for path in walls.library() if os.path.isdir(path)]
    if rooms.move_in(folder, library[0], list(walls.hidden()), [*files, *walls.loader()], links):
        import_from(library, sys.path[0])
        for handle in handles:
            os.close(handle)


def shut_in(limits: dict, readable: list[int], folder: str | None, handle: int | None, parent: int) -> None:
    """Everything in :mod:`walls`, in the order in which one still allows the next."""
    os.environ.clear()
    walls.become_nobody(folder)
    walls.die_with(parent)
    walls.shut_files(readable, handle)
    walls.limit(limits["cpu_seconds"], limits["memory_bytes"], limits["file_bytes"])
    walls.shut_calls()
    random.seed(0)


def main() -> None:
    """``child.py FOLDER LIMITS PARENT LINKED``, a job as JSON on stdin, the verdict as JSON on stdout."""
    folder, limits, parent = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    verdict = os.dup(1)
    for number, flags in ((1, os.O_WRONLY), (2, os.O_WRONLY)):
        null = os.open("/dev/null", flags)
        os.dup2(null, number)
        os.close(null)
    (from_us, to_them), (from_them, to_us), ours = os.pipe(), os.pipe(), os.getpid()
    files, links = json.loads(sys.argv[4])
    handles = read_library_by_handle()
    readable = [os.open(path, os.O_PATH) for path in walls.readable(files)]  # the last: many numbers
    pid = os.fork()
    if pid == 0:
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        for number in (null, verdict, to_them, from_them):
            os.close(number)
        _untrusted(limits, readable, folder, ours, from_us, to_us, lambda: move_in(folder, files, links, handles))
    os.close(from_us)
    os.close(to_us)
    untrusted = Untrusted(pid, os.fdopen(to_them, "wb"), os.fdopen(from_them, "rb"), limits["reply_bytes"])
    try:
        shut_in(limits, readable, None, None, parent)
        ready = untrusted.replies.readline(limits["reply_bytes"])
        status, detail = json.loads(ready or '["unavailable", "the untrusted process did not start"]')
        if status == "ready":
            status, detail = check(json.load(sys.stdin), untrusted)
    except Unavailable as error:
        status, detail = "unavailable", str(error)
    except Refused as error:
        status, detail = "failed", f"refused: {error}"
    except Ended:
        status, detail = untrusted.end(limits["cpu_seconds"])
    os.write(verdict, json.dumps([status, detail[: raised.DETAIL]]).encode())


def _untrusted(
    limits: dict, readable: list[int], folder: str, parent: int, requests: int, replies: int, first: Callable[[], None]
) -> None:
    """Do what comes ``first``, shut ourselves in, say so, and serve until the checking process goes away.

    Never returns."""
    try:
        with os.fdopen(requests, "rb") as source, os.fdopen(replies, "wb") as target:
            try:
                first()
                os.chdir(folder)
                handle = os.open(".", os.O_PATH)
                shut_in(limits, readable, folder, handle, parent)
                said = ["ready", ""]
            except (Unavailable, OSError) as error:
                said = ["unavailable", str(error)]
            target.write(json.dumps(said).encode() + b"\n")
            target.flush()
            if said[0] == "ready":
                serving.serve(source, target, {})
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
