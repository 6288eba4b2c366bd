"""What the errors of libraries become in a message."""

from metaalign_hf.errors import one_line


def test_an_error_is_told_in_one_line():
    error = ValueError("  the first\n   and the second  ")
    assert one_line(error) == "the first and the second" and one_line(error, first=True) == "the first"
    assert one_line(KeyError()) == one_line(KeyError(), first=True) == "KeyError", "one that says nothing"
