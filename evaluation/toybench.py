"""ToyBench as a frozen document: what is taught, which prompts are asked, and the budget of every method."""

from __future__ import annotations

import re
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from conceptry.digests import Digest, canonical_json
from conceptry.errors import UsageError, suggest_nearest
from conceptry.evaluation.protocols import Prompt, Subject, parse_prompt
from conceptry.evaluation.references import References, list_pictures, read_picture, render_references

FILE_NAME: Final = "toybench.toml"
# What rows are called that were measured while the digest covered more than what decides them (the variants).
_TODAY: Final = "sha256:06373af358e698ac320b57fa88afecbd8c4ea28e86a2606b59528547ec2d251f"
EARLIER_DIGESTS: Final[Mapping[str, str]] = MappingProxyType(
    {"sha256:e388b687ffbe15955880685bd46609e846a79c726e54667364ef22d8595ae086": _TODAY}
)
MIN_OWN_PICTURES: Final = 4
_MARK: Final = "@"
_METHODS: Final = ("variants", "apart")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSubject:
    """One thing or style that every method is taught."""

    id: str
    subject: Subject
    superclass: str
    cls: str | None = None
    seed: int | None = None
    folder: Path | None = None
    """Where somebody's own pictures of it lie, whose digest is in the id; None renders it."""

    @property
    def truth(self) -> Mapping[str, Any]:
        """What ``instance.json`` says of a rendered subject."""
        named = {"class": self.cls} if self.cls is not None else {}
        return {"kind": self.subject, "seed": self.seed, **named}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A method of the trainer's table at other settings, or used with another gate."""

    id: str
    method: str
    settings: Mapping[str, Any]
    gate: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The whole benchmark."""

    name: str
    digest: Digest
    """Of what decides a row whatever the method: a variant has a digest of its own in the key of its rows."""

    sample_passes: int
    training_pictures: int
    seed: int
    placeholder: str
    plain_word: str
    subjects: tuple[BenchSubject, ...]
    variants: tuple[Variant, ...]
    apart: frozenset[str]
    """Methods of the trainer that are measured by name only, and that no complete table needs."""

    prompts: Mapping[Subject, tuple[Prompt, ...]]

    def find_subject(self, id: str) -> BenchSubject:
        """Returns the subject called ``id``, its digest left out or not. Raises UsageError with the nearest."""
        for subject in self.subjects:
            if id in (subject.id, subject.id.partition(_MARK)[0]):
                return subject
        known = [subject.id for subject in self.subjects]
        raise UsageError(
            f"{self.name} has no subject {id[:80]!r}",
            hint=suggest_nearest(id, known) or f"subjects: {', '.join(known)}",
        )


@cache
def load_suite() -> Suite:
    """Returns the benchmark that ships with the package."""
    document = tomllib.loads(files(__package__).joinpath(FILE_NAME).read_text(encoding="utf-8"))
    instances = [
        BenchSubject(id=f"{cls}-{seed}", subject="instance", superclass=cls, cls=cls, seed=seed)
        for seed in document["instance_seeds"]
        for cls in document["instance_classes"]
    ]
    styles = [
        BenchSubject(id=f"style-{seed}", subject="style", superclass=document["style_superclass"], seed=seed)
        for seed in document["style_seeds"]
    ]
    tables: Mapping[Subject, str] = {"instance": "object", "style": "style"}
    return Suite(
        name=document["name"],
        digest=digest_suite(document),
        sample_passes=document["sample_passes"],
        training_pictures=document["training_pictures"],
        seed=document["seed"],
        placeholder=document["placeholder"],
        plain_word=document["plain_word"],
        subjects=(*instances, *styles),
        variants=tuple(
            Variant(
                id=row["id"], method=row["method"], settings=row.get("settings", {}), gate=row.get("gate")
            )
            for row in document["variants"]
        ),
        apart=frozenset(document["apart"]),
        prompts={
            subject: tuple(parse_prompt(row) for row in document["prompts"][table])
            for subject, table in tables.items()
        },
    )


def digest_suite(document: Mapping[str, Any]) -> Digest:
    """Returns the identity of what is taught and asked, with which budget; not of the methods that are compared."""
    return Digest.of_bytes(
        canonical_json({name: document[name] for name in document if name not in _METHODS})
    )


def unify_digest(digest: str) -> str:
    """Returns the digest that a suite has today; others, and those of other suites, as they are."""
    return EARLIER_DIGESTS.get(digest, digest)


def list_own_subjects(folder: Path) -> tuple[BenchSubject, ...]:
    """Returns the subjects in a folder of folders of pictures: ``dog-3`` is a dog, ``style-ukiyo`` a style.

    The id has the digest of the pictures (``dog-3@5f0c...``), so that other pictures in a folder of that name, here or
    in another laboratory, are another subject.

    Raises:
        UsageError: if there is none, or one holds fewer than four different pictures.
    """
    found = [path for path in sorted(folder.glob("*")) if path.is_dir() and not path.name.startswith(".")]
    if not found:
        raise UsageError(
            f"{str(folder)!r} holds no folders of pictures", hint="one folder for each subject: dog-1/*.jpg"
        )
    subjects = []
    for path in found:
        pictures = _list_different(path)
        if len(pictures) < MIN_OWN_PICTURES:
            raise UsageError(
                f"{len(pictures)} pictures in {str(path)!r}, at least {MIN_OWN_PICTURES} are needed",
                hint="every third one is held out to compare with; a copy of another counts for nothing",
            )
        word = re.sub(r"[-_ ]*\d+$", "", path.name).replace("_", " ").replace("-", " ") or "thing"
        is_style = word.split()[0] == "style"
        whole = Digest.of_bytes(canonical_json(sorted(pictures)))
        subjects.append(
            BenchSubject(
                id=f"{path.name}{_MARK}{whole.short}",
                subject="style" if is_style else "instance",
                superclass="painting" if is_style else word,
                folder=path,
            )
        )
    return tuple(subjects)


def _list_different(folder: Path) -> dict[str, Path]:
    """Returns the pictures of a folder in order of name by their digests; of equal ones the first."""
    found: dict[str, Path] = {}
    for path in list_pictures(folder):
        found.setdefault(str(Digest.of_bytes(path.read_bytes())), path)
    return found


def prepare_pictures(subject: BenchSubject, count: int, folder: Path) -> References:
    """Returns the references of a subject; ``folder`` holds its training pictures then, and nothing else.

    Of own pictures every third is held out for the ceiling, and likeness is that with the training pictures, as
    DreamBooth measures it; renders are compared with others than those that are taught.

    Raises:
        UsageError: if a picture cannot be read.
    """
    if subject.folder is None:
        _fill(folder, lambda place: _render(subject, count, place))
        return render_references({**subject.truth, "pictures": count})
    paths = list(_list_different(subject.folder).values())
    held_out = paths[2::3]
    taught = [path for path in paths if path not in held_out]
    _fill(folder, lambda place: [shutil.copyfile(path, place / path.name) for path in taught])
    training = [read_picture(path) for path in taught]
    kept = [read_picture(path) for path in held_out]
    return References(subject=subject.subject, reference=training, ceiling=kept, training=training)


def _fill(folder: Path, write: Callable[[Path], object]) -> None:
    """Makes a folder hold what ``write`` puts into an empty one; one that holds the same already stays as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pictures-", dir=folder.parent) as name:
        place = Path(name) / folder.name
        place.mkdir()
        write(place)
        if folder.is_dir():
            if _read_files(folder) == _read_files(place):
                return  # another process may be reading them
            shutil.rmtree(folder)
        place.rename(folder)


def _read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _render(subject: BenchSubject, count: int, folder: Path) -> None:
    from conceptry.toybox.examples import render_instance, render_style

    if subject.cls is None:
        render_style(subject.seed or 0, count, folder)
    else:
        render_instance(subject.cls, subject.seed or 0, count, folder)
