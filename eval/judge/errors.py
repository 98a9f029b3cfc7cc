"""What a harness raises when its judge fails, for whoever turns that into a cell."""

from emkit.errors import UserError


class NoJudge(UserError):
    """The judge did not answer: the cell's status is "no judge", and this is its reason."""
