"""The miniature benchmarks in their harnesses' own formats, and the protocols (YAML) that say how each is asked.

:mod:`eval.benchmarks.protocol` reads and checks a protocol; :mod:`eval.benchmarks.writer` draws and writes the files,
and is imported by those who do so only, for drawing imports matplotlib.
"""

from eval.benchmarks.protocol import BENCHMARK_KEYS, harness, load

__all__ = ["BENCHMARK_KEYS", "harness", "load"]
