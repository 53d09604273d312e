"""The one base class of what this package raises for reasons that a user can mend."""


class WaeError(Exception):
    """Something could not be done. The message is one sentence that says what, and why.

    ``wae.cli.main`` prints it as one line and returns 1; every error class of the package derives from it.
    """
