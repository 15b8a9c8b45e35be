"""Claim: the store does what the cache of ``civitai-hub`` does, as fast, and sees what it does not see.

``PYTHONPATH=FOLDER python benchmarks/civitai_cache.py [OUT.json] [--concepts N] [--large-mb N]``, after ``python -m pip
install --target FOLDER civitai-hub==0.3.2 httpx``: what both have is a download whose SHA-256 is checked, files stored
under their digests, a second download of what is there, and a check of all. Both read the same bytes from the double of
tests/simulators/hub; that package is told what the site's documents would tell it, so that it asks for files alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from measuring import describe_machine, interleave, report
from pulling import NAMESPACE, in_fresh_folder, point_at, pull, serve, to_rows

SITE: Final = "https://civitai.com/api/download/models/"
WEIGHTS: Final = "lora.safetensors"
RUNS: Final = 3


@dataclass(frozen=True, slots=True)
class Peer:
    """The other package, its client sent to the double instead of the site."""

    client: Any
    digests: dict[str, str]
    """SHA-256 of each repository's weights."""

    def fill(self, place: Path, names: list[str]) -> None:
        """Downloads into its cache."""
        self.download(place, names)

    def download(self, place: Path, names: list[str]) -> list[Path]:
        """Returns where the files are in its cache, each checked against its digest if it was not there."""
        from civitai_hub.cache import CacheStore
        from civitai_hub.config import resolve_settings
        from civitai_hub.download import download_file
        from civitai_hub.models import ModelFile, ModelVersion

        found = []
        for number, name in enumerate(names, 1):
            document = {
                "id": number,
                "name": WEIGHTS,
                "hashes": {"SHA256": self.digests[name]},
                "downloadUrl": SITE + name,
                "pickleScanResult": "Success",
                "virusScanResult": "Success",
            }
            file = ModelFile.model_validate(document)
            version = ModelVersion(id=number, files=[file])
            settings = resolve_settings(cache_dir=place, progress=False)
            found.append(
                download_file(self.client, number, version, file, CacheStore(place), settings=settings)
            )
        return found


def make_peer(endpoint: str, digests: dict[str, str]) -> Peer:
    """Returns the other package's client, whose requests for files go to the double."""
    import httpx
    from civitai_hub.client import CivitaiClient

    class Local(httpx.HTTPTransport):  # type: ignore[misc]  # the package is not there where types are checked
        """Sends what is for the site to the double."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            """Returns the double's answer."""
            name = request.url.path.rpartition("/")[2]
            if str(request.url).startswith(SITE):
                request.url = httpx.URL(f"{endpoint}/{NAMESPACE}/{name}/resolve/v1.0.0/{WEIGHTS}")
                request.headers["Host"] = request.url.netloc.decode("ascii")
            return super().handle_request(request)

    client = CivitaiClient()
    client.http = httpx.Client(transport=Local(), follow_redirects=True, timeout=30.0)
    return Peer(client, digests)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--concepts", type=int, default=200)
    parser.add_argument("--large-mb", type=int, default=1024)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="conceptry-bench-") as text:
        folder = Path(text)
        ours, theirs = multiprocessing.Pipe()
        arguments = (folder / "hub", theirs, asked.concepts, asked.large_mb << 20)
        server = multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True)
        server.start()
        theirs.close()
        endpoint = ours.recv()
        point_at(endpoint)
        results = measure(folder, endpoint, [f"imp-{number}" for number in range(asked.concepts)])
        ours.send(None)
        server.join()
    if asked.out is not None:
        document = {"machine": describe_machine(), **results}
        asked.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, endpoint: str, names: list[str]) -> dict[str, Any]:
    """Returns timings of what both do, and what each sees."""
    store, cache = folder / "store", folder / "cache"
    pull(store, [*names, "large"])
    peer = make_peer(endpoint, read_digests(store, [*names, "large"]))
    peer.download(cache, [*names, "large"])
    work: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        f"{len(names)} small files": (
            in_fresh_folder(folder, lambda place: pull(place, names)),
            in_fresh_folder(folder, lambda place: peer.fill(place, names)),
        ),
        "one large file": (
            in_fresh_folder(folder, lambda place: pull(place, ["large"])),
            in_fresh_folder(folder, lambda place: peer.fill(place, ["large"])),
        ),
        f"{len(names)} small files that are there": (
            lambda: pull(store, names),
            lambda: peer.download(cache, names),
        ),
        "a check of all": (lambda: verify(store), lambda: verify_peer(cache)),
    }
    rows = {}
    for title, (mine, other) in work.items():
        timings = interleave({"conceptry": mine, "civitai-hub (peer)": other}, RUNS)
        report(title, timings, ours="conceptry", out=None)
        rows[title] = to_rows(timings)
    seen = {"bytes changed at rest, asked for again": see_damage(store, cache, peer, names[0])}
    for title, row in seen.items():
        print(f"{title}: {json.dumps(row)}")
    return {"timings": rows, "seen": seen}


def read_digests(store: Path, names: list[str]) -> dict[str, str]:
    """Returns the SHA-256 of each concept's weights, as its manifest has it."""
    from conceptry.registry import Registry

    registry = Registry(store)
    manifests = {name: registry.manifest(f"{NAMESPACE}/{name}@1.0.0") for name in names}
    return {name: next(one.iter_files()).sha256.hex for name, one in manifests.items()}


def verify(store: Path) -> None:
    """Reads every byte of ours."""
    from conceptry.registry import Registry

    if Registry(store).verify():
        raise RuntimeError("the store is not whole")


def verify_peer(cache: Path) -> None:
    """Reads every byte of theirs."""
    from civitai_hub.cache import CacheStore

    if not all(sound for _, sound in CacheStore(cache).verify()):
        raise RuntimeError("the cache is not whole")


def see_damage(store: Path, cache: Path, peer: Peer, name: str) -> dict[str, str]:
    """Returns what each gives for a file whose first byte was changed on the disk: other bytes, or an error."""
    from conceptry.errors import ConceptryError
    from conceptry.registry import Registry

    wanted, found = peer.digests[name], {}
    registry = Registry(store)
    concept = registry.get(f"{NAMESPACE}/{name}@1.0.0")
    paths = {
        "conceptry": concept.locate(next(concept.manifest.iter_files())),
        "civitai-hub": peer.download(cache, [name])[0],
    }
    for path in paths.values():
        change_first_byte(path)
    found["conceptry"] = "an error"
    with suppress(ConceptryError):
        again = registry.get(f"{NAMESPACE}/{name}@1.0.0")
        found["conceptry"] = _judge(again.locate(next(again.manifest.iter_files())), wanted)
    found["civitai-hub"] = _judge(peer.download(cache, [name])[0], wanted)
    return found


def change_first_byte(path: Path) -> None:
    """Changes one byte of a file, as a disk or a program may."""
    path = path.resolve()
    mode = path.stat().st_mode
    path.chmod(0o644)
    with path.open("r+b") as file:
        first = file.read(1)[0]
        file.seek(0)
        file.write(bytes([first ^ 1]))
    path.chmod(mode)


def _judge(path: Path, wanted: str) -> str:
    same = hashlib.sha256(path.read_bytes()).hexdigest() == wanted
    return "the right bytes" if same else "other bytes, without a word"


if __name__ == "__main__":
    main()
