"""The sandbox's two processes: one checks, the other runs what a model wrote. Started by :mod:`eval.sandbox`.

The checking process starts first, forks the untrusted one before it knows anything, and then shuts itself in, too. The
program goes to the untrusted process, the tests never do: it is asked for one call at a time and answers with plain
data (:mod:`wire`), which the checking process compares. What the program does to ``assert``, to its builtins, to its
output or to its own process changes nothing but its own answers.
"""

import builtins
import json
import os
import random
import signal
import sys
import traceback
import types

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import walls
import wire
from seccomp import Unavailable

_ENDS_A_LOOP = (StopIteration, StopAsyncIteration)  # what could make a test's loop end before its last case
_DETAIL = 300  # most characters of what is said about a failure


class Refused(BaseException):
    """The program answered with something that is no plain data, and the test wants to look into it."""


class Ended(BaseException):
    """The untrusted process is gone."""


# ------------------------------------------------------------------------------------- the untrusted process
def serve(requests, replies, held: dict) -> None:
    """Run the program, then answer one request a line: a call, or an expression to evaluate in its namespace."""
    module = types.ModuleType("program")
    sys.modules["program"] = module

    def hold(thing) -> int:
        held[id(thing)] = thing
        return id(thing)

    def find(key):
        return module.__dict__[key] if isinstance(key, str) else held[key]

    def answer(line: bytes) -> str:
        request = json.loads(line)
        if "program" in request:
            exec(compile(request["program"], "<program>", "exec"), module.__dict__)
            return "null"
        if "eval" in request:
            return wire.dumps(eval(request["eval"], module.__dict__), hold)
        args, kwargs = wire.loads(request["arguments"], find)
        return wire.dumps(find(request["call"])(*args, **kwargs), hold)

    for line in requests:
        try:
            reply = {"value": answer(line)}
        except BaseException as error:
            reply = {"error": type(error).__name__, "message": _text(error)}
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _text(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())[:_DETAIL]
    except BaseException:
        return ""


# -------------------------------------------------------------------------------------- the checking process
class Untrusted:
    """The other process, seen from the checking one."""

    def __init__(self, pid: int, requests, replies, most: int):
        self.pid, self.requests, self.replies, self.most = pid, requests, replies, most

    def ask(self, request: dict):
        """The plain value of one reply; raises what the program raised, as the builtin exception of that name."""
        try:
            self.requests.write(json.dumps(request).encode() + b"\n")
            self.requests.flush()
        except OSError as error:
            raise Ended from error
        line = self.replies.readline(self.most)
        if not line:
            raise Ended
        if not line.endswith(b"\n"):
            raise Refused(f"the answer is longer than {self.most} bytes")
        try:
            reply = json.loads(line)
            if "error" not in reply:
                return wire.loads(reply["value"], lambda number: Held(number))
            name, message = str(reply["error"]), str(reply["message"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Refused(f"the answer is no plain data: {type(error).__name__}") from error
        known = getattr(builtins, name, None)
        if isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, _ENDS_A_LOOP):
            try:
                raised = known(message)
            except TypeError:  # UnicodeDecodeError wants more
                raised = RuntimeError(f"{name}: {message}")
            raise raised
        raise RuntimeError(f"{name}: {message}")

    def call(self, key, args: tuple, kwargs: dict):
        """The program's function ``key`` (a name, or an object it holds) of plain arguments or objects it holds."""
        arguments = wire.dumps((args, kwargs), _number)
        return self.ask({"call": key, "arguments": arguments})

    def end(self, cpu_seconds: int) -> tuple[str, str]:
        """How it ended: (status, detail)."""
        _, status, used = os.wait4(self.pid, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            # the limit counts clock ticks, which on a busy machine are more than the time that is accounted for
            if used.ru_utime + used.ru_stime > cpu_seconds / 4:
                return "timeout", f"more than {cpu_seconds} s of CPU time"
            return "memory", "the system killed the program, which it does when memory runs out"
        if os.WIFSIGNALED(status):
            return "failed", f"the program died of signal {os.WTERMSIG(status)}"
        return "failed", f"the program ended by itself (exit status {os.WEXITSTATUS(status)})"


class Held:
    """An object that the untrusted process holds: it can be handed back or called, but not looked into."""

    def __init__(self, key, untrusted: Untrusted | None = None):
        self.__dict__.update(key=key, untrusted=untrusted)

    def __call__(self, *args, **kwargs):
        if self.__dict__["untrusted"] is None:
            raise Refused("the program answered with an object where the test calls a function")
        return self.__dict__["untrusted"].call(self.__dict__["key"], args, kwargs)


def _refuse(self, *args):
    raise Refused("the program answered with an object that is no plain data")


_LOOKS = """eq ne lt le gt ge bool hash iter next reversed len contains getitem getattr setattr str repr format int
float index add radd sub rsub mul rmul truediv rtruediv neg abs round enter exit"""
for _name in _LOOKS.split():
    setattr(Held, f"__{_name}__", _refuse)


def _number(thing):
    if type(thing) is Held:
        return thing.__dict__["key"]
    raise Refused(f"the test hands over a {type(thing).__name__}, which is no plain data")


def check(job: dict, untrusted: Untrusted) -> tuple[str, str]:
    """Run the program and its tests: (status, detail)."""
    try:
        untrusted.ask({"program": job["program"]})
    except Exception as error:
        return _failure(error, "the program: ")
    if "calls" in job:
        return _check_calls(wire.loads(job["calls"], _number), untrusted)
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
            same = value == expected
        except Exception as error:
            return _failure(error, f"{expression}: ")
        if not same:
            return "failed", f"{expression} is {value!r}, not {expected!r}"
    return "passed", ""


def _failure(error: Exception, where: str) -> tuple[str, str]:
    text = f"{where}{type(error).__name__}: {_text(error)}".removesuffix(": ")
    return ("memory" if isinstance(error, MemoryError) else "failed"), text


def _place(error: Exception, tests: str) -> str:
    """The innermost line of the tests that was being run."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<tests>"]
    return f"{tests.splitlines()[lines[-1] - 1].strip()}: " if lines and lines[-1] else ""


# ------------------------------------------------------------------------------------------------ start
def read_library_by_handle() -> list[int]:
    """Import from open folders: the user we become may not be able to walk to them (Python below /root)."""
    named = walls.library()
    handles = [os.open(path, os.O_PATH) for path in named if os.path.isdir(path)]
    sys.path[:] = [f"/proc/self/fd/{handle}" for handle in handles]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        if path := getattr(module, "__path__", None):
            module.__path__ = [folder.replace(named[0], sys.path[0], 1) for folder in path]
    return handles


def shut_in(limits: dict, readable: list[int], folder: str | None, handle: int | None, parent: int) -> None:
    """Everything in :mod:`walls`, in the order in which one still allows the next."""
    os.environ.clear()
    walls.become_nobody(folder)
    walls.die_with(parent)
    walls.limit(limits["cpu_seconds"], limits["memory_bytes"], limits["file_bytes"])
    walls.shut_files(readable, handle)
    walls.shut_calls()
    random.seed(0)


def main() -> None:
    """``child.py FOLDER LIMITS PARENT``, a job as JSON on stdin, the verdict as JSON on stdout."""
    folder, limits, parent = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    verdict = os.dup(1)
    for number, flags in ((1, os.O_WRONLY), (2, os.O_WRONLY)):
        null = os.open("/dev/null", flags)
        os.dup2(null, number)
        os.close(null)
    readable = [*read_library_by_handle(), *(os.open(path, os.O_PATH) for path in walls.readable())]
    (from_us, to_them), (from_them, to_us), ours = os.pipe(), os.pipe(), os.getpid()
    pid = os.fork()
    if pid == 0:
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        for number in (null, verdict, to_them, from_them):
            os.close(number)
        _untrusted(limits, readable, folder, ours, from_us, to_us)
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
    os.write(verdict, json.dumps([status, detail[:_DETAIL]]).encode())


def _untrusted(limits: dict, readable: list[int], folder: str, parent: int, requests: int, replies: int) -> None:
    """Shut ourselves in, say so, and serve until the checking process goes away; never returns."""
    try:
        with os.fdopen(requests, "rb") as source, os.fdopen(replies, "wb") as target:
            try:
                os.chdir(folder)
                handle = os.open(".", os.O_PATH)
                shut_in(limits, readable, folder, handle, parent)
                said = ["ready", ""]
            except (Unavailable, OSError) as error:
                said = ["unavailable", str(error)]
            target.write(json.dumps(said).encode() + b"\n")
            target.flush()
            if said[0] == "ready":
                serve(source, target, {})
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
