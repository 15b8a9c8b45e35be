"""The Hub's own client (``huggingface_hub`` 1.32 to 2.4), asked with patience, its errors in our words.

Only its own classes are named here: the HTTP library underneath changed between its versions 1 and 2.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from conceptry import __version__
from conceptry.errors import ConceptryError, ConflictError, NotFoundError, RemoteError
from conceptry.registry.answers import RETRIED, read_retry_after
from conceptry.registry.credentials import find_hub_credential, redact
from conceptry.registry.http import Credential, is_offline

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

ATTEMPTS: Final = 5
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0
_TRANSPORTS: Final = frozenset(
    {"httpx", "httpx2", "httpcore", "httpcore2", "h11", "requests", "urllib3", "ssl"}
)
# Xet is a protocol of its own, which no test of ours can reach: large files go through LFS unless the user says else.
_NO_XET: Final = "HF_HUB_DISABLE_XET"


class PassingError(RemoteError):
    """Raised inside this room for a failure that may pass; ``retry_after_seconds`` is what the server asked for."""

    def __init__(self, message: str, *, hint: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self._retry_after_seconds = retry_after_seconds

    def choose_pause(self, attempt: int) -> float:
        """Returns the seconds to wait after a failed attempt, counted from 1; raises itself if they are too many."""
        pause = min(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), _LONGEST_PAUSE_SECONDS) * random.uniform(
            1.0, 1.5
        )
        asked = self._retry_after_seconds
        if asked is not None and asked > _LONGEST_PAUSE_SECONDS:
            raise self
        return pause if asked is None else asked


class HubClient:
    """The client for one endpoint; nothing is imported or sent before the first question."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint: Final = endpoint

    @cached_property
    def credential(self) -> Credential | None:
        """The user's login for this endpoint, None where there is none. Raises RemoteError."""
        os.environ.setdefault(_NO_XET, "1")
        return find_hub_credential(self.endpoint)

    @cached_property
    def _api(self) -> HfApi:
        credential = self.credential
        from huggingface_hub import HfApi

        token = credential.value.removeprefix("Bearer ") if credential else False
        return HfApi(
            endpoint=self.endpoint, token=token, library_name="conceptry", library_version=__version__
        )

    def ask(self, question: Callable[[HfApi], T], *, about: str) -> T:
        """Returns what the client answers; asked again where the failure may pass.

        Raises:
            NotFoundError: if there is no such repository, revision or file, or it is hidden from this user.
            ConflictError: if something moved or exists already (409, 412).
            RemoteError: if the Hub cannot be reached, refuses, or answers something else.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self.ask_once(question, about=about)
            except PassingError as error:
                if attempt == ATTEMPTS:
                    raise
                time.sleep(error.choose_pause(attempt))
        raise RemoteError(f"{self.endpoint} does not answer")

    def ask_once(self, question: Callable[[HfApi], T], *, about: str) -> T:
        """Returns what the client answers to one question, as ``ask``."""
        if is_offline():
            raise RemoteError(
                f"{self.endpoint} was not asked about {about}: the network is forbidden",
                hint="leave out --offline, or unset HF_HUB_OFFLINE",
            )
        with _in_our_words(self.endpoint, about):
            return question(self._api)


@contextmanager
def _in_our_words(endpoint: str, about: str) -> Iterator[None]:
    try:
        yield
    except ConceptryError:
        raise
    except Exception as error:  # every library below the client has errors of its own
        ours = _explain(error, endpoint, about)
        if ours is None:
            raise
        raise ours from None  # the client's own text could carry addresses with signatures


def _explain(error: BaseException, endpoint: str, about: str) -> ConceptryError | None:
    from huggingface_hub import errors

    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return _explain(error.__cause__, endpoint, about)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return RemoteError(f"{endpoint} was not asked: the network is forbidden", hint="unset HF_HUB_OFFLINE")
    if isinstance(error, errors.GatedRepoError):
        return RemoteError(
            f"{about} on {endpoint} is open only to those who accept its terms",
            hint=f"accept them at {endpoint}, then: hf auth login",
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return NotFoundError(f"{about} is not on {endpoint}", hint="if it is private: hf auth login")
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(error, endpoint, about)
    if isinstance(error, ValueError | KeyError | TypeError):
        return RemoteError(
            f"{endpoint} answers about {about} what its client cannot read: {redact(str(error))[:200]!r}",
            hint="is that the Hub, or a sign-in page of this network in between?",
        )
    if type(error).__module__.partition(".")[0] in _TRANSPORTS or isinstance(error, OSError):
        return PassingError(
            f"{endpoint} cannot be reached: {redact(str(error))[:200] or type(error).__name__}",
            hint="is the network up, and the address right? run the same command again",
        )
    return None


def _explain_status(error: Any, endpoint: str, about: str) -> ConceptryError:
    status = getattr(error.response, "status_code", 0)
    said = redact(" ".join(str(getattr(error, "server_message", "") or "").split()))[:200]
    detail = f" ({status}{': ' + said if said else ''})"
    if status in (409, 412):
        return ConflictError(f"{about} on {endpoint} changed meanwhile{detail}", hint="look, then repeat")
    if status == 401:
        return RemoteError(f"{endpoint} does not accept your login{detail}", hint="hf auth login")
    if status == 403:
        return RemoteError(
            f"your login may not do that with {about} on {endpoint}{detail}",
            hint="log in with a token that has the write right for that namespace: hf auth login",
        )
    if status in (404, 410):
        return NotFoundError(f"{about} is not on {endpoint}", hint="if it is private: hf auth login")
    if status in (413, 507):
        return RemoteError(f"{endpoint} has no room for {about}{detail}", hint="free some space there")
    if status in RETRIED:
        headers = {str(name).lower(): str(value) for name, value in error.response.headers.items()}
        return PassingError(
            f"{endpoint} fails{detail}" if status != 429 else f"{endpoint} allows no more requests for now",
            hint="run the same command again later; nothing was made visible there",
            retry_after_seconds=read_retry_after(headers),
        )
    return RemoteError(f"{endpoint} refused {about}{detail}", hint="check the remote's address")
