"""`wae` called in this process."""

from wae import cli


def run(*arguments: object) -> int:
    """The exit status of ``wae`` with these arguments, which may be paths and numbers."""
    return cli.main([str(argument) for argument in arguments])
