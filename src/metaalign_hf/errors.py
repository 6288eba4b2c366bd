"""The one error that a user of the command line or the Python API is meant to read, and what others say in one line."""

__all__ = ["UserError", "one_line"]


class UserError(ValueError):
    """Bad input, told in one line: what is wrong, where (file, row, key), and what would be right.

    The command line prints the line and exits with code 2, without a traceback.
    """


def one_line(error: BaseException, first: bool = False) -> str:
    """What an error says, in one line; its class where it says nothing.

    Args:
        error: Any error, such as one of a library.
        first: Its first line alone, where the rest is for developers.
    """
    lines = str(error).strip().splitlines()
    return (lines[0].strip() if first and lines else " ".join(" ".join(lines).split())) or type(error).__name__
