"""Errors of the hub as sentences with the next step."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sftm_app.errors import HubError, ResourceError, SFTMError
from sftm_app.weights.hub_names import HubRef, endpoint


def is_unreachable(error: BaseException) -> bool:
    """Whether an error, or one of its causes, comes from the network and is not an answer of the hub."""
    causes = list(_chain(error))
    answered = any(isinstance(one, HfHubHTTPError) for one in causes)
    return not answered and any(isinstance(one, HTTPError) for one in causes)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def explained(ref: HubRef, error: Exception) -> SFTMError:
    """The error as one with a sentence and the next step."""
    for one in _chain(error):
        if isinstance(one, SFTMError):
            return one
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceError(f"{ref}: the disk is full. Free some space, then try again; complete files are kept.")
        if isinstance(one, HfHubHTTPError):
            return HubError(f"{ref}: {_answer(ref, one)}")
    if is_unreachable(error) or isinstance(error, LocalEntryNotFoundError):
        return HubError(
            f"{ref}: {endpoint()} cannot be reached. Check the connection or the proxy (HTTPS_PROXY), then try again. "
            "Everything else works offline."
        )
    lines = str(error).strip().splitlines()
    return HubError(
        f"{ref}: the hub could not be read ({type(error).__name__}{f': {lines[0][:200]}' if lines else ''}). "
        "Try again; complete files are kept."
    )


def _answer(ref: HubRef, error: HfHubHTTPError) -> str:
    status, login = error.response.status_code, "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return f"is gated. Accept its conditions at {endpoint()}/{ref.repo_id}, then {login}, and restart the app."
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision. Check the branch, tag or commit after @."
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"there is no such model at {endpoint()}, or it is private. Check the name; if it is private, {login}."
    if status in (401, 403):
        return f"may not be read with this account ({status}). Ask its owner for access, then {login}."
    if status == 429:
        wait = error.response.headers.get("Retry-After", "")
        when = f"in {wait} seconds" if wait.isdigit() else "in some minutes"
        return f"the hub accepts no more requests for now (429). Try again {when}. If you log in, the limit is higher."
    if status >= 500:
        return f"the hub has an internal error ({status}). Try again in some minutes."
    return f"the hub refused the request ({status}). Try again, or another revision."
