"""The text benchmarks a few items long, written as a protocol writes them."""

from pathlib import Path

from eval import benchmarks
from eval.benchmarks import writer

FOLDER = Path(benchmarks.__file__).parent


def protocol(counts: dict[str, int]) -> dict:
    """mistral-smoke with the benchmarks ``counts`` alone, each of so many items."""
    smoke = benchmarks.load(FOLDER / "mistral-smoke.yaml")
    chosen = {name: {**smoke["benchmarks"][name], "n": n, "validation_n": n} for name, n in counts.items()}
    return {**smoke, "name": "few", "benchmarks": chosen}


def write(split: str, folder: Path, counts: dict[str, int]) -> dict:
    """Write so many items of each benchmark; returns the manifest."""
    return writer.write(protocol(counts), split, folder)


def asked(name: str, row: dict) -> str:
    """The question of an item, put together by hand."""
    return {
        "AlpacaEval": lambda: row["instruction"],
        "GSM8K": lambda: row["question"],
        "MATH": lambda: row["problem"],
        "HumanEval": lambda: "Complete the function.\n" + row["prompt"].rstrip(),
        "MBPP": lambda: f"{row['text']}\n{row['test_list'][0]}",
    }[name]()


def right(name: str, row: dict) -> str:
    """A right reply to an item of the four that lm-evaluation-harness scores."""
    return row[{"GSM8K": "answer", "MATH": "solution", "HumanEval": "canonical_solution", "MBPP": "code"}[name]]
