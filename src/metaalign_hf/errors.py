"""The one error that a user of the command line or the Python API is meant to read."""

__all__ = ["UserError"]


class UserError(ValueError):
    """Bad input, told in one line: what is wrong, where (file, row, key), and what would be right.

    The command line prints the line and exits with code 2, without a traceback.
    """
