"""Tiny VLMEvalKit tables made on the spot: what the harness tests score. Every expected score is worked out by hand."""

import base64
import csv
import io
from pathlib import Path

from PIL import Image

MATHVISTA_SKILLS = "['geometry reasoning', 'algebraic reasoning']"
VISION = ("metric geometry - angle", "metric geometry - area", "metric geometry - length", "solid geometry")


def picture(number: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (number * 7 % 256, 80, 160)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write(path: Path, rows: list[dict]) -> None:
    """A TSV as VLMEvalKit reads it; index and image are added where a row has none."""
    rows = [{"index": str(i), "image": picture(i)} | row for i, row in enumerate(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)


def mathvista(question: str, answer: str, kind: str, task: str, skills: str, options=(), letter: str = "") -> dict:
    return {
        "question": question,
        "answer": answer,
        "question_type": "multi_choice" if options else "free_form",
        "answer_type": kind,
        "choices": str(list(options)),
        "answer_option": letter,
        "task": task,
        "skills": skills,
    }


def refcoco(split: str, box: tuple[int, int, int, int]) -> dict:
    x1, y1, x2, y2 = box
    corners = {"bbox_x1": x1, "bbox_y1": y1, "bbox_x2": x2, "bbox_y2": y2}
    return {"question": f"where is it in {split}", "split": split, "width": 32, "height": 24, **corners}


def write_all(folder: Path) -> None:
    """All eight tables (three columns share RefCOCO.tsv)."""
    seven = str(["seven"] * 10)
    write(
        folder / "VizWiz.tsv",
        [
            {"question": "how many", "answers": str(["7"] * 10)},
            {"question": "what is it", "answers": str(["red cup"] * 2 + ["cup"] * 8)},
            {"question": "which month", "answers": str(["unanswerable"] * 10)},
        ],
    )
    write(
        folder / "GQA_TestDev_Balanced.tsv",
        [{"question": q, "answer": a} for q, a in (("is it red", "no"), ("what color", "red"), ("sport", "none"))],
    )
    write(
        folder / "OCRVQA_TESTCORE.tsv",
        [{"question": "which year", "answer": answer} for answer in ("042", "7", "13")],
    )
    write(
        folder / "ChartQA_TEST.tsv",
        [
            {"question": "what is the value", "answer": "100", "split": "human"},
            {"question": "what is the share", "answer": "0.5", "split": "human"},
            {"question": "which bar", "answer": "Red", "split": "augmented"},
            {"question": "what is the value", "answer": "20", "split": "augmented"},
        ],
    )
    write(
        folder / "TextVQA_VAL.tsv",
        [{"question": "what number", "answer": seven}, {"question": "what word", "answer": str(["STOP"] * 10)}],
    )
    options = ("10", "20", "30", "40")
    asked = "how long is ab choices: (A) 10 (B) 20 (C) 30 (D) 40"
    solving, other = "geometry problem solving", "math word problem"
    write(
        folder / "MathVista_MINI.tsv",
        [
            mathvista("how long is ab", "12", "integer", solving, MATHVISTA_SKILLS),
            mathvista(asked, "20", "text", solving, "['geometry reasoning']", options, "B"),
            mathvista("what is x", "0", "integer", other, "['algebraic reasoning']"),
            mathvista("what is y", "1.5", "float", solving, MATHVISTA_SKILLS),
            mathvista("how many", "3", "integer", other, "['arithmetic reasoning']"),
        ],
    )
    write(
        folder / "MathVision_MINI.tsv",
        [
            {"question": "angle", "answer": "30", "choices": "[]", "category": VISION[0]},
            {"question": asked, "answer": "B", "choices": str(list(options)), "category": VISION[1]},
            {"question": "length", "answer": r"\frac{1}{2}", "choices": "[]", "category": VISION[2]},
            {"question": "volume", "answer": "042", "choices": "[]", "category": VISION[3]},
            {"question": "area", "answer": "7", "choices": "[]", "category": VISION[1]},
            {"question": "count", "answer": "9", "choices": "[]", "category": "counting"},
        ],
    )
    splits = ("RefCOCO_val", "RefCOCO+_val", "RefCOCOg_val")
    write(folder / "RefCOCO.tsv", [refcoco(split, (8, 6, 16, 12)) for split in splits for _ in range(2)])
