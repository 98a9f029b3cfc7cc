"""emkit: merge expert models by learned, layer- or chunk-wise coefficients (Expert Merging, arXiv 2509.25712).

The library knows nothing of tables, notebooks or harnesses; importing it needs none of them.
"""

__version__ = "0.1.0"
