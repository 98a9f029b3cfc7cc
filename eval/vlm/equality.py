"""Are two answers the same number?  MATH-Vision's check, without evaluating anything.

VLMEvalKit's ``is_equal`` calls ``eval()`` on the text the model wrote.  Here the text is *parsed*:
first as plain arithmetic (the cases Python's ``eval`` got right), then as LaTeX arithmetic (the cases
``latex2sympy`` got right).  Names, calls, attributes, strings, comparisons and bit
operations are no arithmetic: they parse to nothing, and so equal nothing but their own text.

Where this differs from the stock function, the stock function is wrong:

* code is never run: ``len("abc")`` is not 3, ``__import__("os").system("...")`` is not 0;
* ``^`` is a power, not Python's XOR: ``2^3`` is 8, not also 1;
* ``2(3)`` is 6 (stock 5); ``1\\,000`` is 1000 (stock 0); ``3 3`` and ``12 000`` are no numbers (stock 6 and 0);
* ``5 # or 6`` is no number (stock 5: to Python the rest is a comment);
* ``a`` and ``b`` are letters; the stock function takes them for its own variables of that name;
* lists are compared entry by entry: ``[2, 4]`` is ``[2,4]``;
* ``\\sqrt``, ``\\pi``, ``\\frac12`` and factorials have values (stock: a ``NameError``, hence "different").
"""

import ast
import math
import operator
import re

TOLERANCE = 1e-6  # absolute, as in VLMEvalKit
_LONGEST = 200  # characters; a longer text is no number
_MOST_BITS = 4096  # of any integer a power may produce
_LARGEST_FACTORIAL = 170


class NotANumber(ValueError):
    """The text is no arithmetic expression."""


def is_equal(answer: str, reference: str) -> bool:
    """Whether two answers are the same text (ignoring case and outer blanks), the same number, or lists of such."""
    answer, reference = (str(text).lower().strip() for text in (answer, reference))
    if answer == reference:
        return True
    ours, theirs = (_items(text) for text in (answer, reference))
    if ours is not None and theirs is not None:
        return len(ours) == len(theirs) and all(map(is_equal, ours, theirs))
    return any(_same(parse, answer, reference) for parse in (plain_number, latex_number))


def _items(text: str) -> list[str] | None:
    """The entries of "[2, 4]" or "(2, 4)" in order, the bracket first; None for what is no list of several."""
    if text[:1] + text[-1:] not in ("[]", "()") or any(bracket in text[1:-1] for bracket in "[]()"):
        return None
    entries = text[1:-1].split(",")
    return [text[0], *entries] if len(entries) > 1 else None


def _same(parse, answer: str, reference: str) -> bool:
    try:
        return bool(abs(parse(reference) - parse(answer)) < TOLERANCE)
    except (NotANumber, ArithmeticError, ValueError, TypeError, RecursionError):
        return False


def _power(base, exponent):
    """``base ** exponent``, refused where the integer would be huge (``9**9**9``)."""
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and abs(exponent) * max(base.bit_length(), 1) > _MOST_BITS:
        raise NotANumber("power too large")
    return base**exponent


def _factorial(value):
    if not isinstance(value, int) or not 0 <= value <= _LARGEST_FACTORIAL:
        raise NotANumber("factorial of no small whole number")
    return math.factorial(value)


def _binomial(n, k):
    if not (isinstance(n, int) and isinstance(k, int) and 0 <= n <= _LARGEST_FACTORIAL):
        raise NotANumber("binomial of no small whole numbers")
    return math.comb(n, k)


# ---------------------------------------------------------------------------------- plain arithmetic
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def plain_number(text: str):
    """Value of Python-style arithmetic (``1/3``, ``2**3``, ``1e3``, ``(1+2)*3``); else :class:`NotANumber`."""
    if len(text) > _LONGEST:
        raise NotANumber("too long")
    if "#" in text:  # the rest of the line would count as a comment
        raise NotANumber("a comment")
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, TypeError) as error:
        raise NotANumber(text) from error


def _value(node):
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, complex):
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise NotANumber(type(node).__name__)


# ---------------------------------------------------------------------------------- LaTeX arithmetic
_REWRITES = (
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\left|\\right|\\quad|\\[,!;: ]|\\?\$|~"), ""),
    (re.compile(r"\^\s*(\\circ|\{\s*\\circ\s*\})"), ""),  # degrees
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])"), lambda match: match.group().replace(",", "")),
    (re.compile("[−–]"), "-"),
    (re.compile(r"\\cdot|\\times|×|·"), "*"),
    (re.compile(r"\\div|÷|:"), "/"),
)
_TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|\\[a-z]+|[-+*/^!(){}\[\]])")
_WRAPPERS = (r"\boxed", r"\text", r"\mathrm", r"\mathbf")


def latex_number(text: str):
    r"""Value of LaTeX arithmetic (``\frac{1}{2}``, ``1\frac{1}{2}``, ``2^{3}``, ``1,000``, ``30^\circ``)."""
    if len(text) > _LONGEST:
        raise NotANumber("too long")
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return _Latex(text).value()


class _Latex:
    """Recursive descent over the tokens of one LaTeX expression."""

    def __init__(self, text: str):
        self.tokens, position, text = [], 0, text.strip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise NotANumber(text)
            self.tokens.append(match.group(1))
            position = match.end()
        self.position = 0

    def value(self):
        result = self._sum()
        if self._peek():
            raise NotANumber("trailing text")
        return result

    def _peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _take(self, expected: str = "") -> str:
        token = self._peek()
        if not token or (expected and token != expected):
            raise NotANumber(f"{token!r} instead of {expected!r}")
        self.position += 1
        return token

    def _sum(self):
        result = self._product()
        while self._peek() in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            result = result + sign * self._product()
        return result

    def _product(self):
        result, mixed = self._signed()
        while True:
            token = self._peek()
            if token in ("*", "/"):
                self._take()
                factor, mixed = self._signed()
                result = result * factor if token == "*" else result / factor
            elif mixed and token == r"\frac":  # a mixed number: 1\frac{1}{2}
                fraction = self._atom()
                result, mixed = result + (fraction if result >= 0 else -fraction), False
            elif (
                token == "("
                or token.startswith("\\")
                or (token[:1].isdigit() and self.tokens[self.position - 1] == ")")
            ):
                result, mixed = result * self._power(), False
            else:
                return result

    def _signed(self):
        """One signed factor, and whether it is a bare whole number (a mixed number may follow)."""
        sign = 1
        while self._peek() in ("+", "-"):
            sign = sign if self._take() == "+" else -sign
        start = self.position
        value = self._power()
        return sign * value, self.position == start + 1 and isinstance(value, int)

    def _power(self):
        base = self._atom()
        while self._peek() == "!":
            self._take()
            base = _factorial(base)
        if self._peek() == "^":
            self._take()
            if self._peek() == "{":
                return _power(base, self._braced())
            return _power(base, self._number(self._take()))
        return base

    def _atom(self):
        token = self._take()
        if token == "(":
            value = self._sum()
            self._take(")")
            return value
        if token == r"\frac":
            return self._argument() / self._argument()
        if token == r"\binom":
            return _binomial(self._argument(), self._argument())
        if token == r"\sqrt":
            degree = self._degree()
            return _power(self._argument(), 1 / degree)
        if token == r"\pi":
            return math.pi
        if token in _WRAPPERS:
            return self._braced()
        return self._number(token)

    def _degree(self):
        if self._peek() != "[":
            return 2
        self._take()
        degree = self._sum()
        self._take("]")
        return degree

    def _argument(self):
        """``{expression}``, or the single digit LaTeX takes (``\\frac12``)."""
        if self._peek() == "{":
            return self._braced()
        digits = self._take()
        if not digits.isdigit():
            raise NotANumber(digits)
        if len(digits) > 1:  # leave the other digits to whoever reads next
            self.tokens.insert(self.position, digits[1:])
        return int(digits[0])

    def _braced(self):
        self._take("{")
        value = self._sum()
        self._take("}")
        return value

    @staticmethod
    def _number(token: str):
        if not token[0].isdigit() and token[0] != ".":
            raise NotANumber(token)
        return int(token) if token.isdigit() else float(token)
