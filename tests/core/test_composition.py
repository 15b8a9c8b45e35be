"""A composition is a document that can be shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from conceptry.composition import (
    CompositionDocument,
    Schedule,
    format_composition,
    parse_composition,
    parse_member,
    read_composition,
)
from conceptry.errors import InvalidNameError, UsageError


@pytest.mark.parametrize(
    ("text", "reference", "strength"),
    [
        ("alice/imp", "alice/imp:latest", 1.0),
        ("alice/imp*0.7", "alice/imp:latest", 0.7),
        ("alice/imp@1.2.0*-0.5", "alice/imp@1.2.0", -0.5),
        ("studio::imp:x*0", "studio::local/imp:x", 0.0),
    ],
)
def test_member_is_a_reference_and_perhaps_a_strength(text: str, reference: str, strength: float) -> None:
    member = parse_member(text)
    assert (str(member.reference), member.strength) == (reference, strength)


@pytest.mark.parametrize(
    "text", ["", "*0.7", "imp*", "imp*x", "imp*nan", "imp*inf", "imp*11", "imp*1e400", "imp*0.5*2", "A"]
)
def test_text_that_is_no_member_is_refused(text: str) -> None:
    with pytest.raises(InvalidNameError):
        parse_member(text)


def test_document_is_written_and_read_back(tmp_path: Path) -> None:
    members = (parse_member("alice/imp@1.2.0*0.7"), parse_member("bob/ukiyo"))
    document = CompositionDocument(base="sd1", concepts=members)
    (tmp_path / "composition.toml").write_text(format_composition(document), encoding="utf-8")
    assert read_composition(tmp_path / "composition.toml") == document


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = [",
        "schema = 2\n[[concepts]]\nreference = 'a'",
        "schema = 1\nconcepts = []",
        "schema = 1\n[[concepts]]\nreference = '../a'",
    ],
)
def test_file_that_is_no_composition_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "composition.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"composition\.toml"):
        read_composition(path)


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*missing\.toml"):
        read_composition(tmp_path / "missing.toml")


def test_renamed_words_and_parts_are_written_and_nothing_that_is_empty() -> None:
    plain = parse_member("bob/ukiyo@1.0.0").model_dump(by_alias=True)
    renamed = {**plain, "reference": "alice/imp@1.2.0", "rename": {"<a>": "<b>"}, "parts": {"unet": 0.5}}
    document = CompositionDocument.model_validate({"schema": 1, "concepts": [renamed, plain]})
    text = format_composition(document)
    assert (text.count("rename"), text.count("parts")) == (1, 1)
    assert parse_composition(text.encode(), "text") == document


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0.0, 0.0), (0.24, 0.0), (0.25, 0.0), (0.5, 1.0), (0.7, 0.5), (0.75, 0.0), (1.0, 0.0)],
)
def test_strength_rises_and_falls_within_its_part_of_the_steps(progress: float, factor: float) -> None:
    assert Schedule(start=0.25, stop=0.75, ramp=0.1).factor(progress) == pytest.approx(factor)
