"""The untrusted process: it runs the program, then answers one request a line. Standard library only."""

import json
import sys
import types

import raised
import wire


def serve(requests, replies, held: dict) -> None:
    """Run the program, then answer one request a line: a call, or an expression to evaluate in its namespace."""
    module = types.ModuleType("program")
    sys.modules["program"] = module

    def hold(thing):
        if isinstance(thing, _Lent):
            return thing.key
        held[id(thing)] = thing
        return id(thing)

    def find(key):
        """An object of ours by name or number; one of the test's, which begin with ``!``, as one that asks it."""
        if isinstance(key, str) and key.startswith("!"):
            return (_LentSteps if key.startswith("!~") else _Lent)(key, call_back)
        return module.__dict__[key] if isinstance(key, str) else held[key]

    def send(reply: dict) -> None:
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()

    def call_back(key, args, kwargs):
        send({"back": key, "arguments": wire.dumps((args, kwargs), hold)})
        for line in requests:  # which may ask us meanwhile
            request = json.loads(line)
            if "answer" in request:
                return wire.loads(request["answer"], find)
            if "raise" in request:
                raise raised.named(request["raise"], request["message"])
            reply_to(request)
        raise SystemExit

    def answer(request: dict) -> dict:
        if "program" in request:
            exec(compile(request["program"], "<program>", "exec"), module.__dict__)
            return {"value": "null"}
        if "eval" in request:
            return {"value": wire.dumps(eval(request["eval"], module.__dict__), hold)}
        if "iter" in request:
            return {"value": wire.dumps(_Steps(iter(held[request["iter"]])), hold)}
        if "next" in request:
            steps = held[request["next"]]
            steps = steps.steps if type(steps) is _Steps else steps
            return {"value": wire.dumps([item for _, item in zip(range(1), steps)], hold)}  # none: it has ended
        args, kwargs = wire.loads(request["arguments"], find)
        try:
            reply = {"value": wire.dumps(find(request["call"])(*args, **kwargs), hold)}
        except BaseException as error:
            reply = _failed(error)
        return {**reply, "arguments": wire.dumps((args, kwargs), hold)}  # what it made of them

    def reply_to(request: dict) -> None:
        try:
            reply = answer(request)
        except BaseException as error:
            reply = _failed(error)
        send(reply)

    for line in requests:
        reply_to(json.loads(line))


def _failed(error: BaseException) -> dict:
    return {"error": type(error).__name__, "message": raised.text(error)}


class _Lent:
    """A function of the test's."""

    def __init__(self, key, call_back):
        self.key, self.call_back = key, call_back

    def __call__(self, *args, **kwargs):
        return self.call_back(self.key, args, kwargs)


class _LentSteps(_Lent):
    """An iterator of the test's."""

    def __iter__(self):
        return self

    def __next__(self):
        if not (found := self.call_back(self.key, (), {})):
            raise StopIteration
        return found[0]


class _Steps:
    """An iterator, as a thing that is no plain data."""

    def __init__(self, steps):
        self.steps = steps
