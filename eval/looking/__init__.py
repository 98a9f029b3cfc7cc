"""Looking at what a table's rows answered: items, pictures and answers over every harness.

``items(plan, benchmark)`` is a frame with one line an item; ``show`` a gallery of it, ``boxes`` its boxes drawn,
``well_formed`` the share of answers that the harness can read at all, ``sheet`` one picture of each benchmark.
"""

from eval.looking.contact import sheet
from eval.looking.frame import asked, items
from eval.looking.gallery import Gallery, show
from eval.looking.grounding import boxes
from eval.looking.reading import well_formed

__all__ = ["Gallery", "asked", "boxes", "items", "sheet", "show", "well_formed"]
