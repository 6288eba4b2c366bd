"""What the Hub refused or failed to do, in one line that says what to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import UserError, one_line

__all__ = ["HubError", "explained", "retry"]

T = TypeVar("T")


class HubError(UserError):
    """What the Hub refused or failed to do, in one line.

    Attributes:
        temporary: Whether a retry may help.
    """

    def __init__(self, message: str, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary


def retry(
    action: Callable[[], T],
    attempts: int,
    wait: float,
    report: Callable[[str], None],
    stopping: threading.Event | None = None,
) -> T:
    """Retry an action after temporary failures, with increasing waits."""
    pause = stopping or threading.Event()
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except HubError as error:
            if not error.temporary or attempt == attempts:
                raise
            report(f"{error}; try {attempt} of {attempts}, the next in {wait:g} s")
        if pause.wait(wait):
            raise HubError("given up in favour of a newer push")
        wait *= 2
    raise AssertionError("unreachable")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the client raises into one line that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        explanation = _explanation(error)
        if explanation is None:
            raise
        raise HubError(f"{what}: {explanation[0]}", temporary=explanation[1]) from error


def _explanation(error: Exception) -> tuple[str, bool] | None:
    """What went wrong, and whether a retry may help; None for an error that does not come from the Hub."""
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else None
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked", False
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no access token; {login}", False
    if isinstance(error, HFValidationError):
        return f"this is not a repository id ({one_line(error, first=True)})", False
    if isinstance(error, GatedRepoError):
        return "access to it must be asked for on its page on the Hub first", False
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such branch, tag or commit", False
    if isinstance(error, RepositoryNotFoundError):
        return f"the Hub has no such repository, or your token may not see it; {login}", False
    if status == 401:
        return f"the Hub does not know the access token; {login}", False
    if status == 403:
        return "your token may not write there; use your own namespace, or a token with write access to it", False
    if status == 412:
        return "somebody else committed to it in the same moment", True
    if status is not None and (status >= 500 or status in (408, 429)):
        return f"the Hub failed (status {status})", True
    if isinstance(error, HfHubHTTPError):
        return one_line(error), False
    if isinstance(error, EntryNotFoundError):  # of a download: no answer, and nothing in the cache
        reason = _root(error)
        if isinstance(reason, OfflineModeIsEnabled):
            return "it is not in the cache, and HF_HUB_OFFLINE is set", False
        return _explanation(reason) if reason is not error else ("it is not in the cache", False)
    if type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
        return f"the Hub cannot be reached ({one_line(error)})", True
    if isinstance(error, ConnectionError | TimeoutError):
        return f"the Hub cannot be reached ({one_line(error)})", True
    if isinstance(error, ValueError) and "metadata in README" in str(error):
        return f"the Hub refuses the model card: {one_line(error)}", False
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return _explanation(error.__cause__)  # "Error while uploading ... to the Hub."
    return None


def _root(error: BaseException) -> Any:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
