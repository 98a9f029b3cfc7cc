"""The patches of VLMEvalKit against its stock code, run in a process of its own with ``vlmeval`` unmended."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_benchmarks

from eval.vlm import patches
from eval.vlm.equality import NotANumber, is_equal, latex_number, plain_number

# where the stock code is right, the patched one says the same: (prediction, reference)
STOCK_IS_RIGHT = [
    ("[2, 4]", "[2, 4]"),
    ("[4, 2]", "[2, 4]"),
    ("[2, 4]", "[2, 4, 6]"),
    ("(2, 4)", "[2, 4]"),
    ("7", "7"), ("7", "7.0"), ("07.50", "7.5"), ("042", "42"), ("8", "7"), ("B", "b"), ("A", "B"),
    ("1/2", "0.5"), ("0.5", r"\frac{1}{2}"), (r"\frac{1}{2}", r"\frac{2}{4}"), (r"\dfrac{3}{4}", "0.75"),
    (r"\tfrac{3}{4}", "3/4"), (r"-\frac{1}{2}", "-0.5"), (r"\frac{-1}{2}", "-0.5"), (r"1\frac{1}{2}", "1.5"),
    (r"1 \frac{1}{2}", "3/2"), (r"\frac{1}{3}", "0.333333333"), ("1/3", "0.3333"), ("2**3", "8"), ("2^{3}", "8"),
    ("2^3", "8"), ("2^10", "1024"), (r"2 \times 3", "6"), (r"2 \cdot 3", "6"), (r"6 \div 2", "3"), ("2×3", "6"),
    ("6÷2", "3"), ("(1+2)*3", "9"), (r"\left(1+2\right)", "3"), ("(1+2)3", "9"), ("1e3", "1000"), ("1,000", "1000"),
    ("1{,}000", "1000"), ("12,345.5", "12345.5"), ("$5$", "5"), (r"\$5", "5"), (r"$\frac{1}{2}$", "0.5"),
    (r"30^\circ", "30"), (r"30^{\circ}", "30"), ("3:4", "0.75"), (r"\boxed{5}", "5"), (r"\text{5}", "5"),
    (r"\mathrm{5}", "5"), (".5", "0.5"), ("5.", "5"), ("--5", "5"), ("+5", "5"), ("−3", "-3"), ("7 // 2", "3"),
    ("7 % 4", "3"), (r"10^{-2}", "0.01"), (r"1.5\times10^3", "1500"), (r"\sqrt[3]{8}", "2"), (r"\binom{5}{2}", "10"),
    (r"\frac{10}{4}", "2.5"), (r"\frac{\frac{1}{2}}{2}", "0.25"), ("1e-7", "0"), ("2e-6", "0"),
    ("5 cm", "5"), ("5 cm", "5 cm"), (r"5\%", "5"), ("(1,2)", "(1,2)"), ("(1,2)", "(2,1)"), (r"\{1,2\}", r"\{1,2\}"),
    (r"\{1,2\}", r"\{2,1\}"), ("5,6", "5"), ("x=5", "5"), ("", "5"), ("nan", "5"), ("none", "5"),
    ("yes", "no"), ("x", "y"), ("1e999", "1e999"), ("1e999", "5"), (r"\frac{1}{0}", "5"), ("1/0", "5"), ("three", "3"),
    (r"\pi", "3"), ("3 apples", "3"), ("1 + 2 = 3", "3"), ("((((", "5"), (r"\frac{1}{", "1"),
]  # fmt: skip

# where it is wrong: (prediction, reference, what is right)
STOCK_IS_WRONG = [
    ("[2,4]", "[2, 4]", True),  # a list with other blanks, or of equal numbers
    ("(1/2, 3)", "(0.5,3.0)", True),
    ('len("abc")', "3", False),  # a program, not a number
    ('__import__("os").getpid() * 0', "0", False),
    ("[1, 2, 3].__len__()", "3", False),
    ("int('7')", "7", False),
    ("1 < 2", "1", False),
    ("2^3", "1", False),  # Python's XOR
    ("6 & 3", "2", False),
    ("2(3)", "5", False),
    ("2(3)", "6", True),
    ("3 3", "6", False),
    ("5 # or 6", "5", False),
    (r"1\,000", "1000", True),
    ("12 000", "0", False),
    (r"\sqrt{4}", "2", True),  # stock: NameError, hence different
    (r"\sqrt{2}", r"2^{0.5}", True),
    (r"\frac12", "0.5", True),
    (r"2\pi", r"\pi \cdot 2", True),
    ("5!", "120", True),
    ("'a'", "a", False),  # the stock function's own variable
]

STOCK = """
import json, sys, types
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
folder = Path(next(iter(find_spec("vlmeval").submodule_search_locations)))
for name in ("vlmeval", "vlmeval.dataset"):  # the modules themselves, unmended
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
mathv = import_module("vlmeval.dataset.utils.mathv")
image_vqa = import_module("vlmeval.dataset.image_vqa")
question = json.load(sys.stdin)
stock = mathv.is_equal.__wrapped__  # without the process that only limits its time
answer = {"equal": [bool(stock(*pair)) for pair in question["pairs"]], "accuracy": {}}
for name, file in question["files"].items():
    dataset = image_vqa.ImageVQADataset.__new__(image_vqa.ImageVQADataset)
    dataset.dataset_name = "OCRVQA_TESTCORE"
    answer["accuracy"][name] = float(dataset.evaluate(file)["Overall"].iloc[0])
print("ANSWER" + json.dumps(answer))
"""

DIGITS = [("042", "042"), ("7", "7"), ("", "13")]
MIXED = [("042", "042"), ("7", "7"), ("cup", "13"), ("red", "Red")]


def _predictions(path: Path, pairs) -> str:
    rows = [{"question": "what", "answer": answer, "prediction": prediction} for prediction, answer in pairs]
    tiny_benchmarks.write(path, rows)
    return str(path)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """What unmended VLMEvalKit says about every pair, and about two prediction files."""
    folder = tmp_path_factory.mktemp("stock")
    files = {
        name: _predictions(folder / f"{name}.tsv", pairs) for name, pairs in (("digits", DIGITS), ("mixed", MIXED))
    }
    pairs = [*STOCK_IS_RIGHT, *(case[:2] for case in STOCK_IS_WRONG)]
    run = subprocess.run(
        [sys.executable, "-c", STOCK],
        input=json.dumps({"pairs": pairs, "files": files}),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answer = json.loads(run.stdout.split("ANSWER")[1])
    answer["equal"] = dict(zip(map(tuple, pairs), answer["equal"]))
    return answer


@pytest.mark.parametrize(("prediction", "reference"), STOCK_IS_RIGHT)
def test_equality_is_the_stock_one_where_that_is_right(stock, prediction, reference):
    assert is_equal(prediction, reference) == stock["equal"][prediction, reference]


@pytest.mark.parametrize(("prediction", "reference", "right"), STOCK_IS_WRONG)
def test_equality_is_right_where_the_stock_one_is_wrong(stock, prediction, reference, right):
    assert stock["equal"][prediction, reference] is not right
    assert is_equal(prediction, reference) is right


def test_digits_are_scored_as_text(stock, tmp_path):
    """Stock: 0.0 for digits read back as floats; as text 2 of 3. Where texts are mixed in, nothing changes."""
    assert stock["accuracy"] == {"digits": 0.0, "mixed": 75.0}
    load = patches.read_as_text(None)
    for pairs, right in ((DIGITS, 2), (MIXED, 3)):
        table = load(_predictions(tmp_path / "p.tsv", pairs))
        assert list(zip(table["prediction"], table["answer"])) == pairs
        assert sum(p.lower() == a.lower() for p, a in zip(table["prediction"], table["answer"])) == right


@pytest.mark.parametrize(
    "text",
    [
        '__import__("os").system("touch {}")', 'open("{}", "w")', 'exec("open(\'{}\', \'w\')")',
        '(lambda: open("{}", "w"))()', '[open("{}", "w") for _ in "a"]', 'f"{{open(\'{}\', \'w\')}}"',
        r'\text{{__import__("os").system("touch {}")}}',
    ],
)  # fmt: skip
def test_nothing_is_executed(tmp_path, text):
    target = tmp_path / "made"
    assert not is_equal(text.format(target), "0")
    with pytest.raises(SyntaxError):
        patches.literal(text.format(target))
    assert not target.exists()


@pytest.mark.parametrize(
    "text",
    ["9**9**9", "9^{9^{9}}", "9^9^9", "(9**9)**9**9", "9**9**9**9**9", "170!!", "9999999!",
     r"\binom{99999999}{9999999}",
     "1" * 100_000, "(" * 5000 + ")" * 5000, "((9**99)**99)**99", "-" * 150 + "5", r"\frac{" * 30, "2**-99999999999"],
)  # fmt: skip
def test_huge_numbers_return_promptly(text):
    start = time.perf_counter()
    assert not is_equal(text, "9") and not is_equal("9", text)
    assert time.perf_counter() - start < 0.2


def test_numbers_are_numbers():
    assert plain_number("-(1 + 2) / 4") == -0.75 and latex_number(r"-1\frac{1}{2}") == -1.5
    assert latex_number(r"-2^2") == -4 and latex_number(r"2\frac{1}{2}\times 2") == 5
    for text in ("", "a", "True", "None", "(1, 2)", "{5}", r"\{5\}", "1 2", "1 1/2"):
        with pytest.raises(NotANumber):
            latex_number(text)
        if text != "":
            with pytest.raises(NotANumber):
                plain_number(text)


def test_literals_are_read_and_nothing_else():
    assert patches.literal("['a', 1, {'b': None}]") == ["a", 1, {"b": None}]
    for text in ("a", "f()", "1 if 2 else 3", "geometry reasoning", float("nan"), ""):
        with pytest.raises(SyntaxError):
            patches.literal(text)
