"""The base classes of all errors that this package raises for reasons that a user can fix."""


class WaeError(Exception):
    """Something could not be done. The message is one sentence that says what and why.

    ``wae.cli.main`` prints it as one line and returns 1. All error classes of the package derive from it.
    """


class UsageError(WaeError, ValueError):
    """What was asked for does not exist, is out of range, or cannot be combined.

    ``wae.cli.main`` returns 2.
    """
