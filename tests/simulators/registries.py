"""The other side of two kinds of remotes, real and on a free port: Debian's docker-registry, and moto's S3."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import urllib3

_START_SECONDS: Final = 60.0
USER, PASSWORD = "me", "canary-7d1e"
_BUCKETS: Final = itertools.count(1)
HTPASSWD: Final = f"{USER}:$2a$04$qayYY5qB6.HSQ9u2h8HT5u7aML89SULnXGAy2HFmiv4li8EIaZAka\n"


@contextmanager
def run_registry(folder: Path, *, login: bool = False) -> Iterator[str]:
    """Give ``host:port`` of a running registry with its files below ``folder``; skip the test where it is absent."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed: make system-packages")
    host = f"127.0.0.1:{find_free_port()}"
    folder.mkdir(parents=True)
    text = (
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}}}}}\n"
        f"http: {{addr: '{host}'}}\n"
    )
    if login:
        (folder / "htpasswd").write_text(HTPASSWD, encoding="utf-8")
        text += f"auth: {{htpasswd: {{realm: studio, path: {folder / 'htpasswd'}}}}}\n"
    (folder / "config.yml").write_text(text, encoding="utf-8")
    with _run([program, "serve", str(folder / "config.yml")], host):
        yield host


@contextmanager
def run_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give an empty bucket of an S3 that runs as long as the tests do, and its login in the environment."""
    pytest.importorskip("moto", reason="moto is not installed: make install")
    pytest.importorskip("s3fs", reason="s3fs is not installed: make install")
    address = _start_s3()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "canary-91c4",
        "AWS_ENDPOINT_URL": address,
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"studio{next(_BUCKETS)}"
    with urllib3.PoolManager() as pool:
        pool.request("PUT", f"{address}/{bucket}")
    yield bucket


@functools.cache
def _start_s3() -> str:
    """Return the address of the one S3 of this test run: it takes seconds to start."""
    host = f"127.0.0.1:{find_free_port()}"
    program = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "moto.server",
        "-H",
        "127.0.0.1",
        "-p",
        host.split(":")[1],
    ]
    running = _run(program, host)
    running.__enter__()
    atexit.register(running.__exit__, None, None, None)
    return f"http://{host}"


def find_free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def _run(command: list[str], host: str) -> Iterator[None]:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    try:
        _wait_for(process, host)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], host: str) -> None:
    name, port = host.split(":")
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the server ended with status {process.returncode} before it answered")
        try:
            with socket.create_connection((name, int(port)), timeout=1):
                return
        except OSError:
            time.sleep(0.02)
    pytest.fail(f"the server did not answer within {_START_SECONDS:g} seconds")
