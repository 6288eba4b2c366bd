"""Looks at a domain pair before a long run: `metaalign data check`."""

from .check import Check, check_data

__all__ = ["Check", "check_data"]
