"""emkit: merge expert models by learned, layer- or chunk-wise coefficients (Expert Merging, arXiv 2509.25712).

    import emkit

    merged = emkit.ties("models/base", {"math": "models/math", "code": "models/code"}, density=0.2)
    merged.changed(scale=0.5).save("merged")

:func:`merge` takes any method by its name, and every method is a function of its own (``emkit.task_arithmetic``,
``emkit.expert_merging``, …); :class:`Experts` opens models once for many merges. The library knows nothing of tables,
notebooks or harnesses, and torch is imported when something is merged.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emkit.api import Experts, Live, Merged, merge

__version__ = "0.1.0"
__all__ = ["Experts", "Live", "Merged", "__version__", "merge"]


def __getattr__(name: str) -> Any:
    """The API's names, and every method as a function; looked up here so that ``import emkit`` takes no time."""
    own = Path(__file__).parent / name
    if name.startswith("_") or own.is_dir() or own.with_suffix(".py").is_file():  # a module that is being imported
        raise AttributeError(f"module 'emkit' has no attribute '{name}'")
    from emkit import api

    return api.named(name)


def __dir__() -> list[str]:
    from emkit import api

    return sorted([*__all__, *api.methods_that_merge()])
