"""Proxies, as the environment names them: ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``.

What stays within this machine never goes through one: a secret may be sent there over plain http. Through a proxy it is
the proxy that looks names up, so only what is written as an inner address can be told to be one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urlsplit

import urllib3

from conceptry.errors import UsageError
from conceptry.registry.answers import find_host

_SCHEMES: Final = ("http", "https")
_HERE: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def find_proxy(url: str) -> str | None:
    """Returns the address of the proxy through which ``url`` is asked for, None where it is asked directly.

    Raises:
        UsageError: if the environment names a proxy of a kind that is not supported.
    """
    from urllib import request

    parts = urlsplit(url)
    bypass: Callable[[str], bool] = vars(request)["proxy_bypass_environment"]  # its stubs lack it
    if find_host(url) in _HERE or bypass(parts.netloc):
        return None
    proxies = request.getproxies_environment()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found:
        return None
    proxy = found if "://" in found else f"http://{found}"
    if urlsplit(proxy).scheme not in _SCHEMES or not urlsplit(proxy).hostname:
        raise UsageError(
            f"the environment names a proxy for {parts.scheme} that is no http or https address",
            hint=f"set {parts.scheme.upper()}_PROXY to http://host:port, or NO_PROXY to the hosts that need none",
        )
    return proxy


def is_inner(host: str) -> bool:
    """Returns whether a host is written as an address within this network."""
    try:
        return not ipaddress.ip_address(host.strip("[]").split("%")[0]).is_global
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Pools:
    """The connections of one remote: direct ones, and those through each proxy."""

    def __init__(self, make: Callable[[str | None, dict[str, str]], urllib3.PoolManager]) -> None:
        self._make = make
        self._pools: dict[str | None, urllib3.PoolManager] = {}

    def choose(self, url: str) -> tuple[urllib3.PoolManager, bool]:
        """Returns the connections for ``url``, and whether they go through a proxy. Raises UsageError."""
        proxy = find_proxy(url)
        if proxy not in self._pools:
            self._pools[proxy] = self._make(*_split_secret(proxy))
        return self._pools[proxy], proxy is not None

    def clear(self) -> None:
        """Gives all open connections back."""
        for pool in self._pools.values():
            pool.clear()


def _split_secret(proxy: str | None) -> tuple[str | None, dict[str, str]]:
    """The secret goes into a header alone, so that no message about the address has it."""
    if proxy is None:
        return None, {}
    parts = urlsplit(proxy)
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    if parts.username is None:
        return address, {}
    secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return address, dict(urllib3.make_headers(proxy_basic_auth=secret))
