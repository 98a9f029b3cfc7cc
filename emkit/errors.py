"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Bad input or surroundings: one clear line that says what is wrong and what to do about it.

    Command lines print it as ``error: …`` and exit with 2, without a traceback.
    """
