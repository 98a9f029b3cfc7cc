"""Options of a method from a table's profile: layered, checked, and the part that is a fit's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from emkit.alignment.fit import FitOptions, Optimiser
from emkit.methods import REQUIRED, Method, get
from emkit.schema import Key, fail, mapping


def method_settings(methods: Mapping[str, Mapping], name: str) -> dict:
    """Every option of the method ``name``: its defaults, the settings that it inherits, then its own in ``methods``."""
    found = get(name)
    defaults = {key: option.default for key, option in found.options.items() if option.default is not REQUIRED}
    inherited = method_settings(methods, found.inherits) if found.inherits else {}
    return defaults | inherited | methods.get(name, {})


def fit_options(settings: Mapping) -> FitOptions:
    """The part of a learned method's settings that is the fit's."""
    keys = ("parameterisation", "temperature", "beta", "gamma", "regulariser", "hidden_loss")
    keys += ("hidden_weight", "logit_weight")
    given = {key: settings[key] for key in keys if key in settings}
    return FitOptions(**given, optimiser=Optimiser(**settings["optimiser"]))


def check_options(method: Method, given: Any, where: str, required: Iterable[str]) -> None:
    """Raise ``UserError`` unless ``given`` are options of the method, of the right type, with all ``required``."""
    if not method.options:
        raise fail(where, f"the method {method.name} has no options")
    mapping({key: Key(option.check, key in required) for key, option in method.options.items()})(given, where)
