"""Plain data as JSON and back, types kept: what may cross between a checking process and an untrusted one.

None, bool, int, float, complex, str, bytes, and lists, tuples, sets, frozensets and dicts of these; a subclass crosses
as the type it extends. Nothing else is rebuilt: any other object stays where it is and crosses as a number that means
"the object you hold under it".
"""

import json

_LONG = 1 << 900  # longer integers cross in hexadecimal: decimal takes time quadratic in the length
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
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {"dict": [[_encode(key, hold), _encode(item, hold)] for key, item in value.items()]}
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {name: [_encode(item, hold) for item in value]}
    return {"held": hold(value)}


def _decode(value, held):
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    ((name, content),) = value.items()
    if name in _SEQUENCES:
        return _SEQUENCES[name]([_decode(item, held) for item in content])
    if name == "dict":
        return {_decode(key, held): _decode(item, held) for key, item in content}
    if name == "int":
        return int(content, 16)
    if name == "complex":
        return complex(*map(float, content))
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "held":
        return held(content)
    raise ValueError(f"no value: {name!r}")
