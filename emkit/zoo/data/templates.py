"""Every wording of every question kind. Sub-tasks fill the slots; the lexicon is read from here."""

from emkit.zoo.data.words import listed

TEMPLATES: dict[str, tuple[str, ...]] = {
    # dense supervision for the base model
    "dense/caption": (
        "describe the picture with boxes.",
        "list all objects and their boxes.",
        "what objects are there and where?",
    ),
    "dense/objects": (
        "describe the picture.",
        "list all objects from left to right.",
        "what objects are in the picture?",
    ),
    "dense/text": ("read all the text.", "transcribe the picture.", "what is all the text in the picture?"),
    "dense/table": ("give the table of the chart.", "list all values of the chart.", "turn the chart into a table."),
    "dense/figure": ("describe the figure.", "list the labels of the figure.", "what does the figure show?"),
    # gqa
    "gqa/exist": ("is there a {a}?", "do you see a {a} in the picture?", "does the picture show a {a}?"),
    "gqa/color": ("what color is the {a}?", "which color does the {a} have?", "what is the color of the {a}?"),
    "gqa/shape": ("what shape is the {a} object?", "which shape is {a}?", "what is the shape of the {a} object?"),
    "gqa/color-relation": (
        "what color is the object {rel} the {a}?",
        "which color does the object {rel} the {a} have?",
        "what is the color of the object {rel} the {a}?",
    ),
    "gqa/shape-relation": (
        "what shape is the object {rel} the {a}?",
        "what is the object {rel} the {a}?",
        "which shape is {rel} the {a}?",
    ),
    "gqa/relation": ("is the {a} {rel} the {b}?", "is there a {a} {rel} the {b}?", "do you see the {a} {rel} the {b}?"),
    "gqa/count": ("how many {a} are there?", "how many {a} do you see?", "what is the number of {a}?"),
    "gqa/same-color": (
        "do the {a} and the {b} have the same color?",
        "are the {a} and the {b} of the same color?",
        "is the {a} of the same color as the {b}?",
    ),
    "gqa/size": ("is the {a} small or large?", "what size is the {a}?", "how large is the {a}?"),
    # vizwiz
    "vizwiz/what": ("what is this?", "what is in this photo?", "can you tell me what this is?"),
    "vizwiz/color": ("what color is this {a}?", "what color is the {a}?", "can you tell me the color of the {a}?"),
    "vizwiz/number": ("what number is on this?", "what number does the card say?", "can you read the number?"),
    "vizwiz/beside": ("what is beside the {a}?", "what is next to the {a}?", "what else is there with the {a}?"),
    # textvqa
    "textvqa/only": ("what does the sign say?", "what is written on the sign?", "what is the text on the sign?"),
    "textvqa/color": (
        "what is written on the {a} sign?",
        "what does the {a} sign say?",
        "what is the text on the {a} sign?",
    ),
    "textvqa/place": (
        "what does the {a} sign say?",
        "what is written on the {a} sign?",
        "what is the text on the {a} sign?",
    ),
    "textvqa/number": (
        "what number is on the sign?",
        "what number does the sign show?",
        "what is the number on the sign?",
    ),
    "textvqa/which": (
        "what color is the sign that says {word}?",
        "which color does the {word} sign have?",
        "what is the color of the {word} sign?",
    ),
    # ocrvqa
    "ocrvqa/author": ("who wrote this book?", "who is the author of this book?", "what is the name of the author?"),
    "ocrvqa/title": (
        "what is the title of this book?",
        "what is the name of this book?",
        "which title does this book have?",
    ),
    "ocrvqa/genre": ("what is the genre of this book?", "what type of book is this?", "what kind of book is this?"),
    "ocrvqa/is-genre": ("is this a {a} book?", "is this book about {a}?", "is the genre of this book {a}?"),
    # chartqa
    "chartqa/value": ("what is the value of {a}?", "how much is {a}?", "which value does {a} have?"),
    "chartqa/value-color": (
        "what is the value of the {a} {mark}?",
        "how much is the {a} {mark}?",
        "which value does the {a} {mark} have?",
    ),
    "chartqa/largest": ("which label has the largest value?", "what has the highest value?", "which is the largest?"),
    "chartqa/smallest": ("which label has the smallest value?", "what has the lowest value?", "which is the smallest?"),
    "chartqa/maximum": (
        "what is the largest value?",
        "what is the highest value in the chart?",
        "how much is the largest?",
    ),
    "chartqa/minimum": (
        "what is the smallest value?",
        "what is the lowest value in the chart?",
        "how much is the smallest?",
    ),
    "chartqa/difference": (
        "what is the difference between {a} and {b}?",
        "how much larger is {a} than {b}?",
        "by how much does {a} exceed {b}?",
    ),
    "chartqa/compare": (
        "is {a} larger than {b}?",
        "is the value of {a} larger than {b}?",
        "does {a} have a larger value than {b}?",
    ),
    "chartqa/color": ("what color is {a}?", "which color does {a} have?", "what is the color of {a}?"),
    "chartqa/largest-color": (
        "what color is the largest {mark}?",
        "which color has the largest value?",
        "what is the color of the largest {mark}?",
    ),
    "chartqa/count": ("how many {a} are there?", "how many {a} does the chart show?", "what is the number of {a}?"),
    # mathvista
    "mathvista/third-angle": (
        "what is the third angle of the triangle?",
        "find the angle x of the triangle.",
        "how large is the angle x?",
    ),
    "mathvista/line-angle": (
        "what is the angle x on the line?",
        "find the angle x on the straight line.",
        "the line is straight. how large is the angle x?",
    ),
    "mathvista/perimeter": (
        "what is the perimeter of the rectangle?",
        "find the perimeter of the rectangle.",
        "how long is the perimeter?",
    ),
    "mathvista/area": (
        "what is the area of the rectangle?",
        "find the area of the rectangle.",
        "how large is the area?",
    ),
    "mathvista/side": (
        "the area of the rectangle is {a}. find the side x.",
        "the rectangle has area {a}. how long is x?",
        "what is the side x if the area is {a}?",
    ),
    "mathvista/balance": (
        "both sides have the same weight. find x.",
        "what is x on the scale?",
        "the scale is in balance. how much is x?",
    ),
    "mathvista/sum": ("what is the sum of all bars?", "how much are all bars together?", "find the sum of the bars."),
    "mathvista/bar-difference": (
        "how much larger is the {a} bar than the {b} bar?",
        "what is the difference between the {a} and the {b} bar?",
        "by how much does the {a} bar exceed the {b} bar?",
    ),
    # mathvision
    "mathvision/clock": (
        "what is the angle between the hands of the clock?",
        "find the angle between the two hands.",
        "how large is the smaller angle between the hands?",
    ),
    "mathvision/right-angle": (
        "the angle is split in two. find x.",
        "a right angle is split. how large is x?",
        "what is the angle x inside the right angle?",
    ),
    "mathvision/grid-area": (
        "what is the area of the shaded region?",
        "how many squares are shaded?",
        "find the shaded area in squares.",
    ),
    "mathvision/frame-area": (
        "what is the area of the white squares?",
        "how many squares are not shaded?",
        "find the area that is not shaded.",
    ),
    "mathvision/ruler": (
        "how long is the bar on the ruler?",
        "what is the length of the bar?",
        "find the length of the bar.",
    ),
    "mathvision/path": (
        "how long is the path on the grid?",
        "what is the length of the path?",
        "find the length of the path from start to end.",
    ),
    "mathvision/cubes": (
        "how many cubes are in the stack?",
        "what is the number of cubes?",
        "find the number of cubes.",
    ),
    "mathvision/volume": (
        "what is the volume of the box?",
        "find the volume of the box.",
        "how many unit cubes fit in the box?",
    ),
    # grounding
    "refer": ("where is the {a}?", "locate the {a}.", "find the box of the {a}."),
    "refer/name": (
        "which object is in the box {box}?",
        "what is in the box {box}?",
        "describe the object in the box {box}.",
    ),
}

OPTIONS = " choices: (A) {} (B) {} (C) {} (D) {}"

# Words of answers and of phrases that fill slots and that stand in no word list; only the lexicon needs them.
OTHER_WORDS = listed(
    """
    a above an angle at author bar bars below bottom box clock cubes genre grid high hour is left line long
    middle minute nothing object objects of path plain point points rectangle right ruler scale shaded slice
    slices striped that the times title to top triangle wide
    """
)
