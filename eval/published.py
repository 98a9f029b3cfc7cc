"""What each column of the paper's tables tests: the expert whose task it is."""

_IMAGES = {
    "VizWiz": "VQA",
    "GQA": "VQA",
    "MathVista": "Geometry",
    "MATH-Vision": "Geometry",
    "ChartQA": "Chart",
    "TextVQA": "OCR",
    "OCRVQA": "OCR",
    "RefCOCO": "Grounding",
    "RefCOCO+": "Grounding",
    "RefCOCOg": "Grounding",
}
_TEXT = {"AlpacaEval": "Chat", "GSM8K": "Math", "MATH": "Math", "HumanEval": "Code", "MBPP": "Code"}
GROUPS = _IMAGES | _TEXT
