"""The miniature benchmarks as VLMEvalKit's own TSV files, and the protocols (YAML) that say how each is asked."""

from eval.benchmarks.protocol import BENCHMARK_KEYS, load
from eval.benchmarks.writer import write

__all__ = ["BENCHMARK_KEYS", "load", "write"]
