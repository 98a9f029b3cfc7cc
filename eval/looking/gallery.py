"""Items with their answers as an HTML gallery, for a notebook or a file.

What a model answered is anybody's text: it is escaped, characters that are not printable are written as their number,
and nothing of it is read as mathematics by the page.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from emkit.errors import UserError
from emkit.files import atomic_write
from eval.looking.frame import FORM, PREDICTION, SCORE, asked, labels
from eval.looking.sources import gold_text

_LONGEST = 400  # characters of a text that are shown
_RIGHT, _WRONG, _PART, _NONE = "#0072b2", "#d55e00", "#e69f00", "#888888"


class Gallery:
    """HTML that a notebook shows; :meth:`save` writes it as a page of its own."""

    def __init__(self, body: str, title: str):
        self.body, self.title = body, title

    def _repr_html_(self) -> str:
        return self.body

    def save(self, path: str | Path) -> None:
        """Write a page that stands alone."""
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{text(self.title)}</title>'
        with atomic_write(Path(path)) as part:
            part.write_text(f"{head}<body>{self.body}</body></html>\n", encoding="utf-8")


def show(frame: pd.DataFrame, rows: Sequence[str] | None = None, n: int = 8, side: int = 128) -> Gallery:
    """The first ``n`` items of a frame of :func:`eval.looking.items`: picture (at most ``side`` pixels), question, gold
    answer, and what each of ``rows`` (none: all) answered, marked right or wrong in words and by colour."""
    shown = asked(frame) if rows is None else list(rows)
    unknown = [row for row in shown if row not in asked(frame)]
    if unknown:
        raise UserError(f"the frame has no answers of '{unknown[0]}': it has {', '.join(asked(frame)) or 'none'}")
    benchmark, few = str(frame.attrs.get("benchmark", "")), frame.head(n)
    pictures = any(picture is not None for picture in few["picture"])
    heads = [*(["picture"] if pictures else []), "question and gold answer", *(labels(frame)[row] for row in shown)]
    lines = [_line(entry, shown, pictures, side) for entry in few.to_dict("records")]
    said = f"{benchmark}: {len(few)} of {len(frame)} items" if len(few) else f"{benchmark}: no such item"
    head = "".join(f'<th scope="col" style="text-align:left">{text(name)}</th>' for name in heads)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>" if lines else ""
    # the classes keep MathJax, versions 2 and 3, from reading "$" in a text
    body = f'<div class="tex2jax_ignore mathjax_ignore" style="overflow-x:auto"><p>{text(said)}</p>{table}</div>'
    return Gallery(body, said)


def _line(entry: dict, rows: Sequence[str], pictures: bool, side: int) -> str:
    cells = []
    if pictures:
        alt = f"picture of item {entry['index']}: {entry['question']}"
        cells.append(f'<img src="{_uri(entry["picture"].image, side)}" width="{side}" alt="{text(alt)}">')
    asks = f"<small>{text(entry['index'])}</small><br>{text(entry['question'])}"
    cells.append(f"{asks}<br><b>gold:</b> <code>{text(gold_text(entry['gold']))}</code>")
    cells += [_answer(entry, row) for row in rows]
    style = "text-align:left;vertical-align:top"
    return "<tr>" + "".join(f'<td style="{style}">{cell}</td>' for cell in cells) + "</tr>"


def _answer(entry: dict, row: str) -> str:
    prediction, score = entry[f"{row} {PREDICTION}"], entry[f"{row} {SCORE}"]
    if prediction is None or math.isnan(score):
        return _marked("– no score", "", _NONE)
    mark, colour = ("✓ right", _RIGHT) if score >= 1 else ("✗ wrong", _WRONG) if score <= 0 else ("", _PART)
    mark = mark or f"◐ {score:.2f}"
    if score <= 0 and not entry[f"{row} {FORM}"]:
        mark = "✗ wrong, unreadable"
    return _marked(mark, prediction, colour)


def _marked(mark: str, prediction: str, colour: str) -> str:
    said = f"<code>{text(prediction)}</code><br>" if prediction.strip() else "<i>nothing</i><br>" * (mark[0] != "–")
    return f'<div style="border-left:4px solid {colour};padding-left:6px">{said}<b>{text(mark)}</b></div>'


def text(said: str) -> str:
    """Anybody's text as HTML: cut to 400 characters, escaped, what is not printable as its number, lines kept."""
    said = said if len(said) <= _LONGEST else said[:_LONGEST] + " …"
    lines = "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in said).split("\n")
    return "<br>".join(html.escape(line, quote=True) for line in lines)


def _uri(image: Image.Image, side: int) -> str:
    """The picture as a data URI, no larger than ``side`` pixels, in the smaller of two formats."""
    image.thumbnail((side, side))
    found = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        stream = io.BytesIO()
        image.save(stream, format=kind, **options)
        found[kind] = base64.b64encode(stream.getvalue()).decode("ascii")
    kind = min(found, key=lambda name: len(found[name]))
    return f"data:image/{kind};base64,{found[kind]}"
