"""The text columns a few items long, written as a protocol writes them."""

from pathlib import Path

from emkit.schema import load_yaml
from eval import columns
from eval import profile as profiles
from eval import table as tables
from eval.columns import Protocol
from eval.columns.kinds import Column
from eval.items import writer

TABLES = {"internvl": "table1", "qwen2_vl": "table2", "mistral": "table3"}
TEXT = ("AlpacaEval", "GSM8K", "MATH", "HumanEval", "MBPP")


def said(profile: str, backbone: str) -> dict:
    """The section ``protocol`` of a shipped profile."""
    path = profiles.find(profile, backbone)
    return load_yaml(path.read_text(), str(path))["protocol"]


def full(profile: str, backbone: str) -> Protocol:
    """How every column of a backbone's table is asked on a shipped profile."""
    names = tables.load(TABLES[backbone]).columns
    return columns.protocol(profile, backbone, names, said(profile, backbone), f"{backbone}-{profile}")


def changed(given: Protocol, name: str, **changes) -> Protocol:
    """The protocol with other settings of one column."""
    column = given.columns[name].model_copy(update=changes)
    return given.model_copy(update={"columns": {**given.columns, name: column}})


def protocol(counts: dict[str, int]) -> Protocol:
    """mistral's smoke protocol with the columns ``counts`` alone, each of so many items."""
    smoke = full("smoke", "mistral")
    chosen = {name: smoke.columns[name].model_copy(update={"n": n, "validation_n": n}) for name, n in counts.items()}
    return smoke.model_copy(update={"name": "few", "columns": chosen})


def column(name: str) -> Column:
    """A text column as its file says it."""
    return columns.load(name)


def write(split: str, folder: Path, counts: dict[str, int]) -> dict:
    """Write so many items of each column; returns the manifest."""
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
