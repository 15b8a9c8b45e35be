"""``concepts.toml``: what is written is what is read, and what cannot be is refused at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from conceptry.errors import ConflictError, InvalidProjectError, NotFoundError
from conceptry.names import ConceptName, RemoteName, VersionRange
from conceptry.registry.project import ProjectRequirement, digest_requirements, parse_project
from conceptry.registry.project_edits import drop_requirement, set_remote, set_requirement
from conceptry.registry.workspace import create_project, find_folder

HERE = Path("/here")
IMP = ConceptName("me", "imp")
WRITTEN = """\
# ours
[project]
base = "sd1"  # do not change

[concepts]
"me/imp" = "^1.2"   # the blue one
"bob/ukiyo" = { version = "~1.0", remote = "studio", strength = 0.7, rename = { "<ukiyo>" = "<print>" } }
"me/hat" = { path = "files/hat.safetensors", placeholder = "<hat>", license = "CC0-1.0" }

[remotes]
studio = "file:///srv/concepts"
"""


def test_project_is_read_in_order_of_name() -> None:
    project = parse_project(WRITTEN.encode(), HERE)
    assert [str(one.name) for one in project.requirements] == ["bob/ukiyo", "me/hat", "me/imp"]
    ukiyo, hat, imp = project.requirements
    assert (str(imp.versions), imp.remote, imp.strength) == ("^1.2", None, None)
    assert (ukiyo.remote, ukiyo.strength, ukiyo.rename) == ("studio", 0.7, {"<ukiyo>": "<print>"})
    assert hat.foreign is not None
    assert (hat.foreign.source.kind, hat.foreign.license) == ("path", "CC0-1.0")
    assert project.remotes == {"studio": "file:///srv/concepts"}


def test_edit_keeps_comments_and_order() -> None:
    text = set_requirement(WRITTEN, ProjectRequirement(name=IMP, versions=VersionRange("^2.0")))
    text = set_requirement(
        text, ProjectRequirement(name=ConceptName("zoe", "sky"), versions=VersionRange("*"))
    )
    before, after = WRITTEN.splitlines(), text.splitlines()
    assert [line for line in before if line not in after] == ['"me/imp" = "^1.2"   # the blue one']
    assert [line for line in after if line not in before] == [
        '"me/imp" = "^2.0"   # the blue one',
        '"zoe/sky" = "*"',
    ]
    assert drop_requirement(text, ConceptName("zoe", "sky")) == text.replace('"zoe/sky" = "*"\n', "")


def test_new_range_keeps_what_else_the_line_says() -> None:
    ukiyo = ProjectRequirement(name=ConceptName("bob", "ukiyo"), versions=VersionRange("^2"))
    changed = parse_project(set_requirement(WRITTEN, ukiyo).encode(), HERE).find(ukiyo.name)
    assert changed is not None
    assert (str(changed.versions), changed.remote, changed.strength) == ("^2", "studio", 0.7)


def test_dropping_what_is_not_required_names_the_nearest() -> None:
    with pytest.raises(NotFoundError) as caught:
        drop_requirement(WRITTEN, ConceptName("me", "inp"))
    assert caught.value.hint == "did you mean 'me/imp'?"


def test_remote_is_not_given_another_address_in_silence() -> None:
    with pytest.raises(ConflictError):
        set_remote(WRITTEN, RemoteName("studio"), "file:///elsewhere")


def test_digest_is_of_what_is_required_and_not_of_how_it_is_written() -> None:
    digest = digest_requirements(parse_project(WRITTEN.encode(), HERE))
    turned = WRITTEN.replace("# ours\n", "").replace('"me/imp" = "^1.2"   # the blue one\n', "")
    turned = turned.replace("[concepts]\n", '[concepts]\n\n"me/imp" = { version = "^1.2" }\n')
    assert digest_requirements(parse_project(turned.encode(), HERE)) == digest
    changed = WRITTEN.replace("^1.2", "^1.3")
    assert digest_requirements(parse_project(changed.encode(), HERE)) != digest


def test_project_is_found_upward(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find_folder(below) is None
    create_project(tmp_path, base="sd1")
    assert find_folder(below) == tmp_path
    with pytest.raises(ConflictError):
        create_project(tmp_path)


REFUSED: dict[str, tuple[str, str | None, str]] = {
    "an unknown table": ("[concept]\n", None, "did you mean 'concepts'?"),
    "an unknown key of the project": ('[project]\nbsae = "sd1"\n', "project", "did you mean 'base'?"),
    "an unknown key of a requirement": (
        '[concepts]\n"me/imp" = { verison = "^1" }\n',
        'concepts."me/imp"',
        "did you mean 'version'?",
    ),
    "a range that is none": (
        '[concepts]\n"me/imp" = "newest"\n',
        'concepts."me/imp"',
        "write ^1.2, ~1.2.3 or >=1.0,<2.0",
    ),
    "a name in upper case": (
        '[concepts]\n"Me/Imp" = "*"\n',
        'concepts."Me/Imp"',
        "use lower-case letters, digits and - _ . between them, 64 characters at most",
    ),
    "a number for a requirement": (
        '[concepts]\n"me/imp" = 1\n',
        'concepts."me/imp"',
        'write "me/imp" = "^1.0"',
    ),
    "a strength that is none": (
        '[concepts]\n"me/imp" = { strength = 11 }\n',
        'concepts."me/imp".strength',
        "write a number between -10 and 10",
    ),
    "a credential in an address": (
        '[remotes]\nstudio = "https://me:secret@host/x"\n',
        "remotes.studio",
        "leave it out of the address",
    ),
    "an address without its digest": (
        '[concepts]\n"me/imp" = { url = "https://host/x.safetensors" }\n',
        'concepts."me/imp".url',
        "write https://host/file.safetensors#sha256= and 64 hexadecimal digits, without credentials",
    ),
    "a name written twice in two ways": (
        '[concepts]\nimp = "*"\n"local/imp" = "*"\n',
        "concepts",
        "keep one of the lines",
    ),
    "no toml": ("[concepts\n", None, "correct the file"),
}


@pytest.mark.parametrize(("text", "where", "hint"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_at_its_place(text: str, where: str | None, hint: str) -> None:
    with pytest.raises(InvalidProjectError) as caught:
        parse_project(text.encode(), HERE)
    assert (caught.value.where, caught.value.hint, caught.value.exit_code) == (where, hint, 2)
    assert "secret" not in str(caught.value)
