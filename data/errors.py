"""The one exception that a user is meant to see."""


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message names the thing, what was got, what it may be, and the remedy. The command line
    prints it without a traceback and exits with code 2.
    """
