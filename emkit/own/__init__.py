"""Merging one's own models: ``emkit init``, ``emkit merge`` and ``emkit coefficients``.

A recipe names a base, its experts and a method. Everything that can be told from headers and settings is checked before
any weight is read; the methods are those of the tables; the result is verified before it takes its name.
"""
