"""A judge that works by rule: it answers the questions VLMEvalKit's MathVista and MATH-Vision ask an LLM.

Both ask the same thing: "extract the answer from the model response", after five worked examples, the question and
the response.  VLMEvalKit grades the extracted answer itself, so this judge never sees the right answer.  It
extracts as a careful reader would, from the words alone:

* multiple choice: the option letter that is named, else the one option whose text is given;
* otherwise the number or formula after "answer is" or "=", else the only number, else a short reply as it stands,
  else a long one's last number (the prompt asks for the final value at the end); numbers in digits, without unit or
  thousands separator, and never a number that is part of a formula.

A request it does not recognise, or a response that holds no answer, gets :data:`REFUSAL`, never a guess.
"""

import re

#: VLMEvalKit knows this sentence as a refusal (``can_infer_option``): it matches no option and no number.
REFUSAL = "Cannot determine the answer"
GREETING = "Hello! How can I help you today?"

_TASK = "Please read the following example.\nThen extract the answer from the model response"
_LAST_EXAMPLE = "Model response: The correct answer is (B) 8/11.\n\nExtracted answer: B\n"
_RESPONSE, _END = "Model respone: ", "Extracted answer:"  # the harness's own spelling
_OPTION = re.compile(r"\(([A-Za-z])\)\s*(.*?)(?=\s*\([A-Za-z]\)|\n|$)")
_LISTED_OPTION = re.compile(r"^\s*([A-Z])[.:]\s+(.+?)\s*$", re.MULTILINE)
_UNIT = r"(?:\s*(?:mm|cm|dm|m|km|g|kg|s|min|h|degrees?|units?)\b|[°%])"
_DIGITS = r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?|-?\.\d+"
_NUMBER = re.compile(rf"(?<![\w.*^+/{{\\-])({_DIGITS})(?={_UNIT}|(?![\w*^}}/+(\[]|\.\d|-\d))")  # no part of a formula
_MARK = r"(?:answer\s*(?:is|:|=)|=|\bis\b)\s*(?:about|approximately|equal to|:)?\s*\$?\s*"
_MARKED = re.compile(rf"{_MARK}$", re.IGNORECASE)
_MARKED_WORD = re.compile(rf"{_MARK}(\S+?)\.?$", re.IGNORECASE)
_MINUS = re.compile(r"[−–](?=\s?[\d.\\])(?<![\d\w)]–)")  # an en dash between two numbers is a range
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_WORD = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)
_LONGEST_PLAIN_REPLY = 5  # words


def reply(prompt: str) -> str:
    """The judge's whole reply to one user message."""
    if prompt.strip().lower() in ("hello", "hello!", "hi"):
        return GREETING
    task = parse(prompt)
    answer = extract(*task) if task else None
    return answer or REFUSAL


def parse(prompt: str) -> tuple[str, str] | None:
    """(question, response) of an extraction request, or None when the prompt is no such request.

    The response is what the model wrote and may contain anything, so the *first* marker ends the question.
    """
    if not prompt.strip().startswith(_TASK) or not prompt.endswith(_END):
        return None
    _, examples, asked = prompt.partition(_LAST_EXAMPLE)
    question, marker, response = asked.partition(_RESPONSE)
    if not examples or not marker:
        return None
    return question.strip(), response[: -len(_END)].strip()


def extract(question: str, response: str) -> str | None:
    """The answer that ``response`` gives to ``question``, in the form the question wants; None if it gives none."""
    if not response:
        return None
    response = _MINUS.sub("-", response)
    options = parse_options(question)
    if options:
        return _option(options, response)
    if "python list" in question.lower():
        return _list(response)
    return _value(response)


def parse_options(question: str) -> dict[str, str]:
    """Letter -> text of the question's options, ``(A) …`` or ``A. …`` lines; empty when it is no multiple choice."""
    for pattern in (_OPTION, _LISTED_OPTION):
        found = [(letter.upper(), text.strip()) for letter, text in pattern.findall(question)]
        letters = [letter for letter, _ in found]
        if len(found) > 1 and letters == [chr(65 + i) for i in range(len(found))]:
            return dict(found)
    return {}


def _option(options: dict[str, str], response: str) -> str | None:
    upper = "".join(options)
    either = upper + upper.lower()  # "the answer is a triangle" names no option, so a bare "a" must stand alone
    patterns = (
        rf"\(([{either}])\)",
        rf"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*([{upper}])\b(?!')",
        rf"^\s*([{either}])\s*[.:)]?\s*$",
        rf"^\s*([{upper}])\s*[.:)]",
    )
    for pattern in patterns:
        named = {letter.upper() for letter in re.findall(pattern, response)}
        if named:
            return named.pop() if len(named) == 1 else None
    given = [letter for letter, text in options.items() if _says(response, text)]
    return given[0] if len(given) == 1 else None


def _says(response: str, text: str) -> bool:
    """Whether ``text`` stands alone in ``response``: "5" does in "5 cm", not in "15" or "5.2"."""
    return bool(text) and re.search(rf"(?<![\w.]){re.escape(text)}(?![\w]|\.\d)", response, re.IGNORECASE) is not None


def _value(response: str) -> str | None:
    """A free-form answer: a marked number or formula, the only number, a short reply, or a long one's last number."""
    text = _WORD.sub(lambda word: str(_WORDS.index(word.group().lower())), response)
    numbers = [(re.sub(r"[,\s]", "", n.group(1)), _MARKED.search(text[: n.start()])) for n in _NUMBER.finditer(text)]
    marked = [number for number, mark in numbers if mark]
    if marked:
        return marked[-1]
    if formula := _MARKED_WORD.search(response):
        return formula.group(1)
    if len({number for number, _ in numbers}) == 1:
        return numbers[0][0]
    words = response.rstrip(".").split()
    if len(words) <= _LONGEST_PLAIN_REPLY:
        return " ".join(words) or None
    return numbers[-1][0] if numbers else None


def _list(response: str) -> str | None:
    if brackets := re.findall(r"\[[^\[\]]*\]", response):
        return brackets[-1]
    numbers = [number.group(1) for number in _NUMBER.finditer(response)]
    return f"[{', '.join(numbers)}]" if numbers else None
