"""The merging methods: a registry, one small module per family, and the job that runs a method for a row of a table.

A method is a function from a :class:`Context` to a :class:`Merge`, registered under its own name with what it needs,
its options and their defaults. A new one is a function in a module that is imported here.
"""

from emkit.methods import arithmetic, learned, matrix, plain, ties
from emkit.methods.registry import REGISTRY, REQUIRED, Context, Merge, Method, Option, get
from emkit.methods.row import card, merge_row

FAMILIES = (plain, arithmetic, ties, matrix, learned)

__all__ = ["FAMILIES", "REGISTRY", "REQUIRED", "Context", "Merge", "Method", "Option", "card", "get", "merge_row"]
