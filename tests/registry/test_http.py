"""The way to the web: whatever a server does, the right bytes or a clear error, and no secret elsewhere."""

from __future__ import annotations

import pytest

pytest.importorskip("resource", reason="no such limits on Windows")

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from conceptry.errors import ConceptryError, NotFoundError, RemoteError, UsageError
from conceptry.names import RemoteName
from conceptry.registry import Registry, answers
from conceptry.registry.answers import find_origin, follow_redirect, read_content_range, read_retry_after
from conceptry.registry.http import Credential, Limits, Transport
from tests.registry import http_sweep
from tests.registry.http_sweep import BYTES, QUICK, REFERENCE, Site, check_point, pull, read_pulled
from tests.simulators.http_faults import FAULTS
from tests.simulators.http_plays import Fault, cut_body

SLOW = ("stall", "drip", "silence", "once, ")
SAMPLE = [fault for fault in FAULTS if not any(word in fault.name for word in SLOW)][::6]


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Give a served folder with one concept."""
    with http_sweep.serve_site(tmp_path) as served:
        yield served


def pull_into(root: Path, site: Site) -> None:
    registry = Registry(root)
    registry.add_remote(RemoteName("site"), site.server.uri)
    registry.pull("site::me/imp")


def test_there_are_more_than_sixty_ways_of_failing() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) > 60


@pytest.mark.parametrize("fault", SAMPLE, ids=lambda fault: fault.name)
def test_failing_server_ends_in_right_bytes_or_a_clear_error(
    site: Site, tmp_path: Path, fault: Fault
) -> None:
    _, wrong = check_point(site, tmp_path / "second", fault, "blob", site.sizes["blob"] // 2)
    assert wrong == []


@pytest.mark.parametrize("target", ["manifest", "list"])
@pytest.mark.parametrize(
    "name", ["cut once", "web page", "302 to another origin", "gzip that was not asked for"]
)
def test_documents_are_read_with_the_same_care(site: Site, tmp_path: Path, target: str, name: str) -> None:
    (fault,) = [fault for fault in FAULTS if fault.name == name]
    assert check_point(site, tmp_path / "second", fault, target, 10)[1] == []


def test_pull_that_was_ended_goes_on_from_there_in_another_process(site: Site, tmp_path: Path) -> None:
    root = tmp_path / "second"
    site.server.set_fault(Fault(name="cut", play=cut_body, times=100, outcome="error"), "/x", cut=0)
    registry = Registry(root)
    partial = root / "partial"
    site.server.set_fault(
        Fault(name="cut", play=cut_body, times=100, outcome="error"), site.paths["blob"], cut=30_000
    )
    assert pull(site, root) == "error"
    (kept,) = [path for path in partial.rglob("*") if path.is_file()]
    assert kept.stat().st_size == 30_000
    site.server.heal()
    assert pull(site, root) == "right"
    asked = [seen.headers.get("range") for seen in site.server.seen if seen.path == site.paths["blob"]]
    assert asked == ["bytes=30000-"]
    assert read_pulled(registry) == BYTES


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "CONCEPTRY_OFFLINE"])
def test_forbidden_network_opens_no_socket(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(RemoteError, match="the network is forbidden") as caught:
        pull_into(tmp_path / "second", site)
    assert caught.value.exit_code == 5
    assert site.server.seen == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://name.invalid"])
def test_server_that_is_not_there_is_told_in_words(address: str) -> None:
    with pytest.raises(RemoteError, match="cannot be reached") as caught:
        Transport(address, limits=QUICK).read(f"{address}/x", limit_bytes=10)
    assert caught.value.exit_code == 5
    assert caught.value.hint is not None


def test_server_that_cannot_prove_who_it_is_gets_no_request(tmp_path: Path) -> None:
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
    ]
    try:
        subprocess.run(
            [*made, "-keyout", tmp_path / "key", "-out", tmp_path / "cert"], check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    received: list[bytes] = []

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        try:
            with context.wrap_socket(connection, server_side=True) as wrapped:
                received.append(wrapped.recv(1000))
        except OSError:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        uri = f"https://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(RemoteError, match="cannot prove who it is"):
            Transport(uri, limits=QUICK).read(f"{uri}/x", limit_bytes=10)
        thread.join()
    assert received in ([], [b""])


def test_encrypted_address_never_leads_to_an_open_one() -> None:
    with pytest.raises(RemoteError, match="not encrypted"):
        follow_redirect("https://example.org/x", "http://example.org/x")
    assert follow_redirect("https://example.org/a/x", "../y") == "https://example.org/y"


def test_credential_is_for_one_origin_and_not_for_open_lines() -> None:
    held = Credential(find_origin("https://example.org"), "Bearer secret")
    assert "secret" not in repr(held)
    fits = ["https://example.org/x", "https://example.org:443/x"]
    others = [
        "http://example.org/x",
        "https://example.org:444/x",
        "https://sub.example.org",
        "https://example.com",
    ]
    assert [held.fits(url) for url in fits] == [True, True]
    assert [held.fits(url) for url in others] == [False] * 4
    assert not Credential(find_origin("http://example.org"), "x").fits("http://example.org/x")


def test_redirect_drops_secret_headers_of_the_caller(site: Site) -> None:
    (fault,) = [fault for fault in FAULTS if fault.name == "307 to another origin"]
    site.server.set_fault(fault, site.paths["blob"], cut=0)
    transport = Transport(site.server.uri, limits=QUICK)
    url = site.server.uri + site.paths["blob"]
    secret = {"Authorization": "Bearer canary", "Cookie": "canary"}
    assert transport.read(url, limit_bytes=1 << 20, headers=secret).body == BYTES
    assert site.server.seen[0].headers["authorization"] == "Bearer canary"
    assert [seen.headers.keys() & {"authorization", "cookie"} for seen in site.other.seen] == [set()]


@pytest.mark.parametrize(
    "address", ["https://me:secret@host/x", "ftp://host", "https://", "nonsense", "https://h:x/"]
)
def test_address_that_is_none_is_refused_without_its_secret(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        Transport(address)
    assert "secret" not in str(caught.value)


def test_larger_document_than_allowed_is_not_read(site: Site) -> None:
    transport = Transport(site.server.uri, limits=QUICK)
    with pytest.raises(ConceptryError, match="more than the 100 bytes") as caught:
        transport.read(site.server.uri + site.paths["blob"], limit_bytes=100)
    assert caught.value.exit_code == 4


def test_what_is_not_there_is_not_found_at_once(site: Site) -> None:
    transport = Transport(site.server.uri, limits=Limits())
    with pytest.raises(NotFoundError):
        transport.read(f"{site.server.uri}/nothing", limit_bytes=100)
    with pytest.raises(NotFoundError), transport.stream(f"{site.server.uri}/nothing", size_bytes=9):
        pytest.fail("there is nothing to open")


NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        (format_datetime(datetime(2026, 11, 21, 12, 1, tzinfo=UTC), usegmt=True), 60.0),
        (format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True), 0.0),
        ("-1", None),
        ("1e3", None),
        ("9" * 30, None),
        ("tomorrow", None),
        ("", None),
    ],
)
def test_both_forms_of_retry_after_are_understood(text: str, seconds: float | None) -> None:
    assert read_retry_after({"retry-after": text}, now=NOW) == seconds


@pytest.mark.parametrize(
    "text", ["", "bytes 5-4/9", "bytes 0-9/9", "bytes */9", "bytes 0-1", "bytes -1-2/3", "b 0-1/2"]
)
def test_malformed_range_is_none(text: str) -> None:
    assert read_content_range({"content-range": text}) is None


def test_secrets_in_an_address_stay_out_of_messages() -> None:
    assert answers.describe_url("https://me:pw@host/x?X-Amz-Signature=1#f") == "https://host/x"
    assert "me/imp" in str(REFERENCE)
