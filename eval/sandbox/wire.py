"""Plain data as JSON and back, types kept: what may cross between a checking process and an untrusted one.

None, bool, int, float, complex, str, bytes, range, Decimal, Fraction, and lists, tuples, sets, frozensets, dicts and
bytearrays of these; a subclass crosses as the type it extends. Nothing else is rebuilt: any other object (a function, a
generator) stays where it is and crosses as a number that means "the object you hold under it".
"""

import builtins
import importlib
import json
import re
import sys

_LONG = 1 << 900  # longer integers cross in hexadecimal: decimal takes time quadratic in the length
_NUMBERS = (("decimal", "Decimal"), ("fractions", "Fraction"))  # looked for where their modules are in use
# a fraction's text has no exponent: a short one would stand for a number that takes all the memory
_WRITTEN = {"Decimal": r"-?(?:[\d.]+(?:E[+-]?\d+)?|s?NaN\d*|Infinity)", "Fraction": r"-?\d+(?:/\d+)?"}
_TYPES = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}  # are themselves, everywhere
_SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def dumps(value, hold) -> str:
    """``value`` as one line of JSON; ``hold(object)`` gives the number that stands for an object that is not plain."""
    return json.dumps(_encode(value, hold))


def loads(text: str | bytes, held):
    """The value in ``text``; ``held(number)`` gives what stands for the other side's object. ValueError if damaged."""
    try:
        return _decode(json.loads(text), held)
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"no value: {error!r}") from error


def write_back(old, new) -> None:
    """Make ``old``, a list, set, dict or bytearray, what ``new`` of the same type is, and so what is in it: the very
    objects that one side has become what the other made of them. One object that stands at two places is two."""
    if isinstance(old, list):
        old[:] = [_kept(before, after) for before, after in zip(old, new)] + new[len(old) :]
    elif isinstance(old, dict):
        found = {key: _kept(old[key], after) if key in old else after for key, after in new.items()}
        old.clear()
        old.update(found)
    elif isinstance(old, (set, bytearray)):
        old.clear()
        old.update(new) if isinstance(old, set) else old.extend(new)
    elif isinstance(old, tuple):
        for before, after in zip(old, new):
            write_back(before, after)


def _kept(old, new):
    """The old object, with what is in the new one, where they are of one kind; else the new one."""
    if type(old) is type(new) and isinstance(old, (list, dict, set, bytearray)):
        write_back(old, new)
        return old
    return new


def _encode(value, hold):
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        value = int(value)
        return value if -_LONG < value < _LONG else {"int": hex(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
    if isinstance(value, range):
        return {"range": [hex(part) for part in (value.start, value.stop, value.step)]}
    for module, kind in _NUMBERS:
        if (known := sys.modules.get(module)) is not None and isinstance(value, getattr(known, kind)):
            return {kind: str(value)}
    ordered = sys.modules.get("collections")
    if ordered is not None and isinstance(value, ordered.OrderedDict):  # whose order is compared
        return {"ordered": [[_encode(key, hold), _encode(item, hold)] for key, item in value.items()]}
    if isinstance(value, dict):
        return {"dict": [[_encode(key, hold), _encode(item, hold)] for key, item in value.items()]}
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {name: [_encode(item, hold) for item in value]}
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return {"type": value.__name__}
    return {"held": hold(value)}


def _decode(value, held):
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    ((name, content),) = value.items()
    if name in _SEQUENCES:
        return _SEQUENCES[name]([_decode(item, held) for item in content])
    if name == "ordered":
        items = [(_decode(key, held), _decode(item, held)) for key, item in content]
        return importlib.import_module("collections").OrderedDict(items)
    if name == "type":
        return _TYPES[content]
    if name == "dict":
        return {_decode(key, held): _decode(item, held) for key, item in content}
    if name == "int":
        return int(content, 16)
    if name == "complex":
        return complex(*map(float, content))
    if name in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[name].fromhex(content)
    if name == "range":
        return range(*(int(part, 16) for part in content))
    for module, kind in _NUMBERS:
        if name == kind and len(content) < 5000 and re.fullmatch(_WRITTEN[kind], content):
            return getattr(importlib.import_module(module), kind)(content)
    if name == "held":
        return held(content)
    raise ValueError(f"no value: {name!r}")
