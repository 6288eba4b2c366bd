"""Things that are known by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from .citations import check_bibtex, cite
from .errors import UserError, did_you_mean

__all__ = ["Registry"]

T = TypeVar("T")
F = TypeVar("F")


class Registry(dict[str, T]):
    """Classes or functions by name; to ask for an unknown one is an error that lists the known ones.

    Args:
        what: What is registered.
        unknown: How the error for an unknown name begins, with `{}` for the name.
        known: What the list of known names is called.
        advice: How the error ends.
        others: Names that are taken by something else, which are listed too.
        cited_as: Kind of the things in `metaalign_hf.citations`.
    """

    def __init__(
        self,
        what: str,
        unknown: str,
        *,
        known: str = "known",
        advice: str = "",
        others: Collection[str] = (),
        cited_as: str = "",
    ) -> None:
        super().__init__()
        self.what, self.unknown, self.known, self.advice = what, unknown, known, advice
        self.others, self.cited_as = others, cited_as
        self._owners: dict[str, str] = {}

    def register(
        self, name: str, make: Callable[[Any], T] = lambda thing: thing, *, citation: str | None = None
    ) -> Callable[[F], F]:
        """A decorator that makes a class or function known by name.

        Args:
            name: The name; it must be free. What is defined anew, as in a notebook, takes its own place.
            make: Makes of it what is kept.
            citation: BibTeX of its publication.

        Raises:
            ValueError: If something else has the name, or the citation is not BibTeX.
        """
        check_bibtex(name, citation)

        def decorate(thing: F) -> F:
            owner: str = thing.__qualname__  # type: ignore[attr-defined]
            before = self._owners[name] if name in self else owner
            if before != owner or name in self.others:
                by = "" if name in self.others else f", by {before}"
                raise ValueError(f"{self.what} {name!r} is registered already{by}")
            cite(f"{self.cited_as}/{name}", citation)
            self[name], self._owners[name] = make(thing), owner
            return thing

        return decorate

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted([*self, *self.others])

    def options(self, name: str) -> dict[str, Any]:
        """The keyword-only arguments of a class and their defaults.

        Raises:
            UserError: If there is no such class.
        """
        parameters = inspect.signature(self[name].__init__).parameters.values()  # type: ignore[misc]
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def __missing__(self, name: str) -> T:
        hint = f"{did_you_mean(name, self.names())} ".lstrip()
        listed = ", ".join(self.names())
        raise UserError(f"{self.unknown.format(name)}; {hint}{self.known}: {listed}{self.advice}")
