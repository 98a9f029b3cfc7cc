"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Bad input or surroundings: one clear line that says what is wrong and what to do about it.

    Command lines print it as ``error: …`` and exit with 2, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback (its hook for exceptions that know better): the line alone."""
        return [f"{type(self).__name__}: {self}"]
