"""Citations of the methods, as BibTeX. A citation is given where its method is registered.

A citation is known by a kind and a name: `alignment/dann`, `level/query`, `validator/bnm`, `coordination/metaalign`,
`batch_norm/per_domain`, `target_loss/mean_teacher`, `model/lora`. It imports without torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

__all__ = ["check_bibtex", "citations_of", "cite", "import_methods", "known_citations"]

_CITED: dict[str, str] = {}


def cite(what: str, bibtex: str | None) -> None:
    """Register the citation of a method.

    Args:
        what: Kind and name of the method, such as `alignment/dann`.
        bibtex: One or several BibTeX entries; None for a method without a publication.

    Raises:
        ValueError: If the text is not BibTeX.
    """
    check_bibtex(what, bibtex)
    if bibtex is not None:
        _CITED[what] = bibtex.strip()


def check_bibtex(what: str, bibtex: str | None) -> None:
    """Refuse a citation that is not BibTeX.

    Raises:
        ValueError: If it is not.
    """
    if bibtex is not None and (not bibtex.lstrip().startswith("@") or bibtex.count("{") != bibtex.count("}")):
        raise ValueError(f"citation of {what}: it must be BibTeX, such as '@article{{key, title = {{...}}, ...}}'")


def citations_of(methods: Iterable[str]) -> list[str]:
    """The BibTeX of methods, each entry once, in order; methods without a citation are left out."""
    return list(dict.fromkeys(_CITED[what] for what in methods if what in _CITED))


def known_citations() -> set[str]:
    """Kind and name of everything that has a citation."""
    return set(_CITED)


def import_methods() -> None:
    """Import what registers methods and their citations, and with it torch."""
    modules = ("alignment", "alignment.detection", "batch_norm", "evaluation", "evaluation.detection_validators")
    for module in (*modules, "target_losses", "training", "models.dual_encoders", "models.lora"):
        import_module(f"{__package__}.{module}")
