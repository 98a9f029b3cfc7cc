"""The program in a model's reply, found by parsing; nothing is run.

A reply may hold its program behind fences of any usual form or between lines of prose, whole or, where the prompt began
the function, as the body alone. Of several pieces the last that defines what is wanted counts: an example that only
calls it defines nothing, and a second draft replaces the first.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Iterable, Iterator

_LIST = r"(?:(?:[-*+>]|\d+[.)])[ \t]+)*"
_OPEN = re.compile(rf"^([ \t]*{_LIST})(`{{3,}}|~{{3,}})[ \t]*(\{{?[\w.+#-]*\}}?)[ \t]*[^`~]*$")
_ONE_LINE = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]+(.*\S)[ \t]*```[ \t]*$", re.IGNORECASE)
_BEGINS = re.compile(r"(?:async\s+def|def|class|import|from)\b|@|[A-Za-z_]\w*(?:\s*:[^=]+)?\s*=(?!=)")
_LINES = 400  # of a reply without fences that are tried; each is where a program could begin or end
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def parsed(text: str) -> ast.Module | None:
    """The syntax tree of ``text``; None where it is no Python."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def whole(reply: str, wanted: Iterable[str]) -> str | None:
    """The last piece of ``reply`` that defines a name of ``wanted``; None where none does.

    Names that it uses and another piece before it defines or imports are taken along.
    """
    wanted, (fenced, rest) = set(wanted), split(_lines(reply))
    for pieces in (fenced, _unfenced(rest)):
        pieces = [(piece if parsed(piece) else textwrap.dedent(piece)).strip("\n") + "\n" for piece in pieces]
        trees = [parsed(piece) for piece in pieces]
        defining = [(at, tree) for at, tree in enumerate(trees) if tree and wanted & _defined(tree)]
        written = [(at, tree) for at, tree in defining if not _stub(tree, wanted)]
        if defining:
            at, tree = (written or defining)[-1]
            return _needed(pieces[:at], trees[:at], tree) + pieces[at]
    return None


def last(reply: str) -> str:
    """The last fence of a reply in which nothing wanted was found; the reply where it has none."""
    fenced, _ = split(_lines(reply))
    return textwrap.dedent(fenced[-1]) if fenced else reply


def called(tests: list[str]) -> set[str]:
    """The functions that the tests call and that Python does not have."""
    tree = parsed("\n".join(tests))
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call)) if tree else ()
    return {func.id for func in calls if isinstance(func, ast.Name)} - set(dir(builtins))


def completed(prompt: str, reply: str, entry_point: str | None = None) -> str | None:
    """``prompt`` with the function that it begins, from a reply that holds it whole or its body; None for neither.

    ``entry_point`` is the function's name; None: that of the last function in the prompt.
    """
    entry_point = entry_point or re.findall(r"^(?:async[ \t]+)?def[ \t]+(\w+)", prompt, re.MULTILINE)[-1]
    function = whole(reply, [entry_point])
    if function is not None:
        return _before(prompt, entry_point) + function
    fenced, rest = split(_lines(reply))
    for text in [*reversed(fenced), rest]:
        body = _body(prompt, text)
        if body is not None:
            return body
    return None


def split(lines: list[str]) -> tuple[list[str], str]:
    """What stands in the fences of a reply, each as a text, and what stands outside of them."""
    fenced, rest, at = [], [], 0
    while at < len(lines):
        one, opened = _ONE_LINE.match(lines[at]), _OPEN.match(lines[at])
        at += 1
        if one:
            fenced.append(one[1] + "\n")
        elif not opened:
            rest.append(lines[at - 1])
        else:
            content, at = _fence(lines, at, opened[2])
            if content.strip():
                fenced.append(content)
    return fenced, "\n".join(rest)


def _lines(reply: str) -> list[str]:
    return reply.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "").split("\n")


def _fence(lines: list[str], begin: int, mark: str) -> tuple[str, int]:
    """The content of the fence that ``mark`` opened, and the line after it; a mark inside a docstring ends nothing."""
    close = re.compile(rf"^(.*?){mark[0]}{{{len(mark)},}}[ \t]*$")
    ends = [(at, found[1]) for at in range(begin, len(lines)) if (found := close.match(lines[at]))]
    first = None
    for at, last in ends:
        content = "\n".join([*lines[begin:at], *([last] if last.strip(" \t>") else []), ""])
        first = first or (content, at + 1)
        if parsed(textwrap.dedent(content)) is not None:
            return content, at + 1
    return first or ("\n".join([*lines[begin:], ""]), len(lines))


def _unfenced(text: str) -> list[str]:
    """The pieces of a text that are Python, between lines that are prose."""
    tree = parsed(textwrap.dedent(text))
    if tree is not None and any(isinstance(node, _DEFINITIONS) for node in tree.body):
        return [_without_words(textwrap.dedent(text), tree)]
    lines, pieces, at = text.split("\n")[:_LINES], [], 0
    while at < len(lines):
        piece, end = _longest(lines, at) if _BEGINS.match(lines[at].lstrip()) else ("", at + 1)
        pieces += [piece] if piece else []
        at = end
    return ["\n".join(pieces[:at]) for at in range(1, len(pieces) + 1)]  # imports and helpers come along


def _longest(lines: list[str], begin: int) -> tuple[str, int]:
    for end in range(len(lines), begin, -1):
        piece = textwrap.dedent("\n".join(lines[begin:end]) + "\n")
        tree = parsed(piece)
        if tree is not None:
            return _without_words(piece, tree), end
    return "", begin + 1


def _without_words(piece: str, tree: ast.Module) -> str:
    """``piece`` without words at its end that happen to be Python, such as "Done" and "Note: done"."""
    body = list(tree.body)
    while body and (
        (isinstance(body[-1], ast.Expr) and not isinstance(body[-1].value, ast.Call | ast.Constant))
        or (isinstance(body[-1], ast.AnnAssign) and body[-1].value is None)
    ):
        body.pop()
    return "\n".join(piece.split("\n")[: body[-1].end_lineno]) + "\n" if body else ""


def _defined(tree: ast.Module) -> set[str]:
    """The names that a program's outermost statements define, import or assign."""
    names = set()
    for node in tree.body:
        if isinstance(node, _DEFINITIONS):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and _stored(part)}
    return names


def _stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _stub(tree: ast.Module, wanted: set[str]) -> bool:
    """Whether what is wanted has no body but a docstring, ``pass`` or ``...``: the question said again."""
    found = [node for node in tree.body if isinstance(node, _DEFINITIONS) and node.name in wanted]
    return bool(found) and all(
        isinstance(part, ast.Pass) or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        for part in found[-1].body
    )


def _needed(pieces: list[str], trees: list, tree: ast.Module) -> str:
    """The definitions and imports of earlier pieces whose names ``tree`` uses and does not define."""
    found, known = "", _defined(tree)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for piece, earlier in reversed([pair for pair in zip(pieces, trees) if pair[1]]):
        for node in reversed(earlier.body):
            if not isinstance(node, (*_DEFINITIONS, ast.Import, ast.ImportFrom)):
                continue
            names = _defined(ast.Module([node], []))
            if names & used - known:
                found = (ast.get_source_segment(piece, node) or "") + "\n" + found
                known |= names
                used |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return found


def _before(prompt: str, entry_point: str) -> str:
    """The prompt's own imports and helpers: all that stands before the function it begins."""
    found = list(re.finditer(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", prompt, re.MULTILINE))
    return prompt[: found[-1].start()] if found else prompt


def _body(prompt: str, text: str) -> str | None:
    """``prompt`` and the body in ``text``, without the lines of prose before and after it."""
    lines = text.split("\n")[:_LINES]
    for begin, line in enumerate(lines):
        if not line.strip():
            continue
        for end in range(len(lines), begin, -1):
            for body in _indented(lines[begin:end]):
                tree = parsed(prompt + body) if body.strip() else None
                if tree is not None and not _words(body):
                    return prompt + body
        if parsed(textwrap.dedent(line)) is not None:
            return None  # a line of code, no prose: nothing may be left out before it
    return None


def _indented(lines: list[str]) -> Iterator[str]:
    """The ways to read lines as a body: as they stand, all to be indented, the first alone to be indented."""
    text = "\n".join(lines).rstrip() + "\n"
    if text.startswith((" ", "\t")):
        yield text
    yield textwrap.indent(textwrap.dedent(text), "    ")
    yield "    " + text.lstrip()


def _words(body: str) -> bool:
    """Whether a body is only words that happen to be Python."""
    tree = parsed(textwrap.dedent(body))
    return tree is not None and all(
        isinstance(node, ast.Expr | ast.AnnAssign) and not isinstance(getattr(node, "value", None), ast.Call)
        for node in tree.body
    )
