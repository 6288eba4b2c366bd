"""The typed configuration of pushing to the Hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..checks import Limits
from ..errors import did_you_mean
from .section import Section

__all__ = ["LICENSES", "HubConfig", "license_notes"]

_LICENSE_WORDS = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1
lgpl-3.0 lgpl-lr llama2
llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 open-mdw openrail
openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
LICENSES = tuple(_LICENSE_WORDS.split())
"""Licence ids of the Hub, which it adds to now and then; hence a note and no refusal."""


@dataclass
class HubConfig(Section):
    """Pushing to the Hub during and after a run. The token comes from HF_TOKEN or hf auth login, never from a file.

    Args:
        repo_id: Repository to push to, `organisation/name` or `name`; null pushes nothing.
        private: Whether a new repository is private; null takes the Hub's default.
        revision: Branch to push to, made when missing; null is main.
        create_pr: Open a pull request instead of committing; the repository must exist. Then nothing is pushed before
            the end.
        commit_message: Message of the final commit.
        license: Licence for the model card, such as apache-2.0; null states none.
        adapter: Push the low-rank adapters (model.lora) and the heads alone, for this library and peft. Then nothing is
            pushed before the end.
        images: At the end, also publish the picture of target images and show it in the card; only if those images
            may be published.
        push_every: Push in the background once in this number of evaluations; 0 pushes only at the end.
        attempts: How many times a push is tried when the Hub fails or does not answer.
        retry_seconds: Seconds to wait before the second try; doubled for each further try.
        overwrite: Replace the files of a repository that holds a model of another kind.
    """

    repo_id: str | None = None
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    license: str | None = None
    adapter: bool = False
    images: bool = False
    push_every: int = 0
    attempts: int = 5
    retry_seconds: float = 2.0
    overwrite: bool = False

    SECTION = "hub"
    LIMITS: ClassVar[Mapping[str, Limits]] = {
        "push_every": Limits(0),
        "attempts": Limits(1),
        "retry_seconds": Limits(0),
    }


def license_notes(name: str | None) -> list[str]:
    """A note where the Hub may not know a licence: it refuses a model card with one that it does not know."""
    if name is None or name in LICENSES:
        return []
    hint = did_you_mean(name.lower(), LICENSES, "use other for one that the Hub does not list.", n=2)
    return [f"{name!r} is not among the licences of the Hub that this release knows, and the Hub may refuse it; {hint}"]
