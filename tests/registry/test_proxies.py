"""Proxies of the environment: used for what is elsewhere, never for this machine, and told no secret but their own."""

from __future__ import annotations

import pytest

pytest.importorskip("resource", reason="no such limits on Windows")

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from conceptry.errors import RemoteError, UsageError
from conceptry.names import RemoteName
from conceptry.registry import Registry
from conceptry.registry.http import Credential, Transport
from conceptry.registry.proxies import find_proxy, is_inner
from tests.registry import http_sweep
from tests.registry.http_sweep import QUICK, Site, read_pulled
from tests.simulators.http_plays import FOREVER, Fault, redirect
from tests.simulators.http_proxy import Proxy, run_proxy

ELSEWHERE = "http://concepts.example"
EXPECTED = "Basic bWU6czNjcjN0LWNhbmFyeQ=="
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Give a served folder with one concept."""
    with http_sweep.serve_site(tmp_path) as served:
        yield served


@pytest.fixture
def proxy(site: Site) -> Iterator[Proxy]:
    """Give a proxy through which every name is that site."""
    parts = urlsplit(site.server.uri)
    assert parts.port is not None
    with run_proxy(("127.0.0.1", parts.port), password=EXPECTED) as running:
        yield running


def with_secret(proxy: Proxy) -> str:
    return f"http://me:s3cr3t-canary@{proxy.address}"


def test_concept_is_pulled_through_the_proxy(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", with_secret(proxy))
    registry = Registry(tmp_path / "second")
    registry.add_remote(RemoteName("site"), ELSEWHERE)
    registry.pull("site::me/imp")
    assert read_pulled(registry) == http_sweep.BYTES
    assert proxy.asked
    assert all(line.startswith(f"GET {ELSEWHERE}/") for line in proxy.asked)


def test_site_is_not_told_what_is_for_the_proxy(
    site: Site, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", with_secret(proxy))
    Transport(ELSEWHERE, limits=QUICK).read(f"{ELSEWHERE}/refs/me/imp/versions.json", limit_bytes=10_000)
    assert all("proxy-authorization" not in seen.headers for seen in site.server.seen)
    assert len(site.server.seen) == 1


def test_refusing_proxy_is_told_in_a_sentence_without_its_password(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://me:wrong-canary@{proxy.address}")
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:wrong-canary@{proxy.address}")
    for address in (ELSEWHERE, "https://concepts.example"):
        with pytest.raises(RemoteError) as caught:
            Transport(address, limits=QUICK).read(f"{address}/x", limit_bytes=10)
        assert "407" in f"{caught.value}"
        assert "canary" not in f"{caught.value} {caught.value.hint}"


def test_encrypted_address_goes_through_a_tunnel_that_the_proxy_cannot_look_into(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", with_secret(proxy))
    credential = Credential("https://concepts.example:443", "Bearer canary")
    with pytest.raises(RemoteError):  # the site behind it speaks no TLS
        Transport("https://concepts.example", credential=credential, limits=QUICK).read(
            "https://concepts.example/x", limit_bytes=10
        )
    assert set(proxy.asked) == {"CONNECT concepts.example:443"}
    assert all("canary\r" not in f"{head}\r" for head in proxy.heads)


def test_this_machine_and_excepted_hosts_are_asked_directly(
    site: Site, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", with_secret(proxy))
    monkeypatch.setenv("NO_PROXY", "example, .other.test")
    Transport(site.server.uri, limits=QUICK).read(
        f"{site.server.uri}/refs/me/imp/versions.json", limit_bytes=10_000
    )
    assert proxy.asked == []
    assert find_proxy("http://a.example/x") is None
    assert find_proxy("http://a.other.test/x") is None
    assert find_proxy("http://[::1]:80/x") is None
    assert find_proxy("https://b.test/x") == with_secret(proxy)


def test_redirect_to_an_inner_address_is_not_asked_for_by_the_proxy(
    site: Site, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", with_secret(proxy))
    fault = Fault(
        name="inwards", play=redirect(302, "http://169.254.169.254/latest"), times=FOREVER, outcome="error"
    )
    place = f"{ELSEWHERE}{site.paths['list']}"
    site.server.set_fault(fault, site.paths["list"], cut=0)
    with pytest.raises(RemoteError, match="inside this network"):
        Transport(ELSEWHERE, limits=QUICK).read(place, limit_bytes=10_000)
    assert proxy.asked == [f"GET {place}"]


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:1080", "ftp://host:21", "http://"])
def test_proxy_of_another_kind_is_refused_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(UsageError, match="no http or https address") as caught:
        find_proxy("https://concepts.example/x")
    assert "HTTPS_PROXY" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("host", "inner"),
    [
        ("10.0.0.1", True),
        ("169.254.169.254", True),
        ("[fe80::1%eth0]", True),
        ("me.localhost", True),
        ("1.1.1.1", False),
        ("a.example", False),
    ],
)
def test_inner_addresses_are_known_as_they_are_written(host: str, inner: bool) -> None:
    assert is_inner(host) is inner
