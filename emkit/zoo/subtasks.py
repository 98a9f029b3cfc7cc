"""The names of the ten sub-tasks and of their domains, for those who draw nothing (drawing imports matplotlib)."""

SUBTASKS = (
    "vizwiz",
    "gqa",
    "mathvista",
    "mathvision",
    "chartqa",
    "textvqa",
    "ocrvqa",
    "refcoco",
    "refcoco+",
    "refcocog",
)
DOMAINS = {
    "VQA": ("vizwiz", "gqa"),
    "Geometry": ("mathvista", "mathvision"),
    "Chart": ("chartqa",),
    "OCR": ("textvqa", "ocrvqa"),
    "Grounding": ("refcoco", "refcoco+", "refcocog"),
}
