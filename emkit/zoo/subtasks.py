"""Names for those who draw nothing (drawing imports matplotlib): the sub-tasks, of images and of text, the images'
domains, and the file of an adapter's weights."""

ADAPTER = "adapter_model.safetensors"  # PEFT's name

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
TEXT_SUBTASKS = ("alpaca_eval", "gsm8k", "math", "humaneval", "mbpp")
# of a real language model, for which the miniature's are too easy or too odd
REAL_TEXT_SUBTASKS = ("word_problems", "composed", "standard_library")
DOMAINS = {
    "VQA": ("vizwiz", "gqa"),
    "Geometry": ("mathvista", "mathvision"),
    "Chart": ("chartqa",),
    "OCR": ("textvqa", "ocrvqa"),
    "Grounding": ("refcoco", "refcoco+", "refcocog"),
}
