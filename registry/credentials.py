"""The Hub's own login, for the Hub that the user's own settings name, and for no other address."""

from __future__ import annotations

import os
import re
from typing import Final

from conceptry.errors import RemoteError
from conceptry.registry.answers import find_origin
from conceptry.registry.http import Credential

DEFAULT_HUB: Final = "https://huggingface.co"
HUB_VARIABLE: Final = "HF_ENDPOINT"

_SECRETS: Final = re.compile(
    r"\b(?:hf|api_org)_[A-Za-z0-9_-]{4,}"
    r"|(?i:\b(bearer|basic)[ :=]+)[A-Za-z0-9._~+/=-]{6,}"
    r"|(?i:(?<=[?&])[a-z0-9-]*(?:signature|token|credential|policy|key-pair-id|sig)=)[^&\s'\"]+"
)


def find_hub_endpoint() -> str:
    """Returns the Hub that the user's own settings name: ``HF_ENDPOINT``, else huggingface.co."""
    return (os.environ.get(HUB_VARIABLE) or DEFAULT_HUB).rstrip("/")


def find_hub_credential(endpoint: str) -> Credential | None:
    """Returns the user's login (``hf auth login``, ``HF_TOKEN``) if ``endpoint`` is the Hub it belongs to, else None.

    A project may name any endpoint; only the user's own settings decide where the user's token goes.

    Raises:
        RemoteError: if there is a login that cannot be used.
    """
    if find_origin(endpoint) != find_origin(find_hub_endpoint()):
        return None
    import huggingface_hub

    try:
        token = huggingface_hub.get_token()
    except Exception as error:  # noqa: BLE001  # the client may ask a server for a fresh one: errors of any library
        raise RemoteError(
            f"the login of the Hub cannot be used: {redact(str(error))[:200]}", hint="hf auth login"
        ) from None
    return Credential(find_origin(endpoint), f"Bearer {token}") if token else None


def redact(text: str) -> str:
    """Returns text of others without what looks like a token or a signature."""
    return _SECRETS.sub(lambda match: f"{match[1]} ***" if match[1] else "***", text)
