"""The untrusted process as the checking one sees it: functions to call, objects to go through."""

import json
import os
import signal
from collections.abc import Iterator

import raised
import wire

MOST = 20_000  # items given and functions called back: a program that does so for ever must not use up our time


class Refused(BaseException):
    """The program answered with something that is no plain data, and the test wants to look into it."""


class Ended(BaseException):
    """The untrusted process is gone."""


class Untrusted:
    """The other process, seen from the checking one."""

    def __init__(self, pid: int, requests, replies, most: int):
        self.pid, self.requests, self.replies, self.most = pid, requests, replies, most
        self.steps = 0
        self.lent: list = []  # functions of the test's that the program was given

    def ask(self, request: dict):
        """The plain value of one reply; raises what the program raised, as the builtin exception of that name."""
        return self._value(self._reply(request))

    def _value(self, reply: dict):
        if "error" in reply:
            raise raised.named(str(reply["error"]), str(reply.get("message")))
        return self._loads(reply.get("value"))

    def _reply(self, request: dict) -> dict:
        """The reply to a request, once the functions of the test's that the program calls meanwhile were called."""
        self.steps += "next" in request
        self._send(request)
        while True:
            line = self.replies.readline(self.most)
            if not line:
                raise Ended
            if not line.endswith(b"\n"):
                raise Refused(f"the answer is longer than {self.most} bytes")
            try:
                reply = json.loads(line)
                if "back" not in reply:
                    return dict(reply)
                function, arguments = self._function(str(reply["back"])), str(reply["arguments"])
            except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
                raise Refused(f"the answer is no plain data: {type(error).__name__}") from error
            self.steps += 1
            self._call_back(function, arguments)

    def _send(self, request: dict) -> None:
        if self.steps > MOST:
            raise Refused(f"more than {MOST} items were given, or calls of the test's functions made")
        try:
            self.requests.write(json.dumps(request).encode() + b"\n")
            self.requests.flush()
        except OSError as error:
            raise Ended from error

    def _loads(self, text):
        try:
            return wire.loads(text, lambda key: self._lent(key)[1] if isinstance(key, str) else Held(key, self))
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise Refused(f"the answer is no plain data: {type(error).__name__}") from error

    def _call_back(self, function, arguments: str) -> None:
        """Call a function of the test's for the program, and tell it what came of it."""
        args, kwargs = self._loads(arguments)
        try:
            value = wire.dumps(function(*args, **kwargs), self.number)
        except Exception as error:
            return self._send({"raise": type(error).__name__, "message": raised.text(error)})
        return self._send({"answer": value})

    def _lent(self, key: str) -> tuple:
        """What is called for an object that the program was given, and the object."""
        return self.lent[int(key.lstrip("!~"))]

    def _function(self, key: str):
        return self._lent(key)[0]

    def call(self, key, args: tuple, kwargs: dict):
        """The program's function ``key`` (a name, or an object it holds) of plain arguments, objects it holds or
        functions of the test's. What the program changes in a list, set or dict is changed in the test's, too."""
        before = wire.dumps((args, kwargs), self.number)
        reply = self._reply({"call": key, "arguments": before})
        after = reply.get("arguments", before)
        if after != before:
            changed = self._loads(after)
            try:
                for old, new in zip((args, kwargs), changed):
                    wire.write_back(old, new)
            except (ValueError, KeyError, TypeError) as error:
                raise Refused(f"the answer is no plain data: {type(error).__name__}") from error
        return self._value(reply)

    def number(self, thing):
        """What stands for an object of the program's, or for a function of the test's that it may call."""
        if type(thing) is Held:
            return thing.__dict__["key"]
        if isinstance(thing, Iterator):
            self.lent.append((lambda: [item for _, item in zip(range(1), thing)], thing))
            return f"!~{len(self.lent) - 1}"
        if callable(thing):
            self.lent.append((thing, thing))
            return f"!{len(self.lent) - 1}"
        raise Refused(f"the test hands over a {type(thing).__name__}, which is no plain data")

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
    """An object that the untrusted process holds: handed back, called or gone through, but not looked into."""

    def __init__(self, key, untrusted: Untrusted):
        self.__dict__.update(key=key, untrusted=untrusted)

    def __call__(self, *args, **kwargs):
        return self.__dict__["untrusted"].call(self.__dict__["key"], args, kwargs)

    def __iter__(self):
        """What a generator, a map or a zip of the program's gives, one by one."""
        ask = self.__dict__["untrusted"].ask
        steps = ask({"iter": self.__dict__["key"]})
        while found := ask({"next": steps.__dict__["key"]}):
            yield found[0]

    def __next__(self):
        if not (found := self.__dict__["untrusted"].ask({"next": self.__dict__["key"]})):
            raise StopIteration
        return found[0]


def _refuse(self, *args):
    raise Refused("the program answered with an object that is no plain data")


_LOOKS = """eq ne lt le gt ge bool hash reversed getitem getattr setattr str repr format int
float index add radd sub rsub mul rmul truediv rtruediv neg abs round enter exit"""
for _name in _LOOKS.split():
    setattr(Held, f"__{_name}__", _refuse)
