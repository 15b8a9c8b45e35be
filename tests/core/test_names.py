"""One grammar for names, versions and references, and nothing outside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, InvalidDigestError, InvalidNameError
from conceptry.names import (
    LATEST,
    ConceptName,
    Reference,
    Requirement,
    Tag,
    VersionRange,
    parse_base_name,
    parse_namespace,
    parse_placeholder,
    parse_remote_name,
    parse_tag,
    parse_version,
    pick_latest,
)
from conceptry.sources import parse_source

HEX = "0123456789abcdef" * 4

GOOD = {
    "imp": "local/imp:latest",
    "alice/blue-imp": "alice/blue-imp:latest",
    "alice/blue-imp:stable": "alice/blue-imp:stable",
    "alice/blue-imp:v1.2": "alice/blue-imp:v1.2",
    "alice/blue-imp@1.2.0": "alice/blue-imp@1.2.0",
    "alice/blue-imp@1.2.0-rc.1+build.5": "alice/blue-imp@1.2.0-rc.1+build.5",
    "studio::alice/blue-imp": "studio::alice/blue-imp:latest",
    "studio::imp:x": "studio::local/imp:x",
    f"studio::a/b@sha256:{HEX}": f"studio::a/b@sha256:{HEX}",
    "a.b_c-d/e.f_g-h": "a.b_c-d/e.f_g-h:latest",
    "0/1": "0/1:latest",
    f"{'n' * 64}/{'m' * 64}": f"{'n' * 64}/{'m' * 64}:latest",
}

BAD = [
    "",
    " ",
    "/",
    "//",
    "a/",
    "/a",
    "a//b",
    "a/b/c",
    "a/b/c@1.0.0",
    ".",
    "..",
    "../x",
    "../../etc/passwd",
    "a/..",
    "a/../b",
    "./a",
    ".hidden",
    "a/.hidden",
    "-a",
    "a-",
    "a.",
    "_a",
    "a..b",
    "a b",
    "a/b ",
    " a/b",
    "a/b\n",
    "a\tb",
    "a/b\0",
    "A/b",
    "a/B",
    "alice/Blue-Imp",
    "ÄLICE/imp",
    "größe",
    "straße",
    "ａ/b",
    "a/b\u200b",
    "a/\u202eb",
    "á/b",
    "a\\b",
    "a:b:c",
    "a/b:",
    "a/b:Latest",
    "a/b:1.2.3",
    "a/b:-x",
    "a/b@",
    "a/b@1",
    "a/b@1.2",
    "a/b@v1.2.3",
    "a/b@^1.2",
    "a/b@01.2.3",
    "a/b@1.2.3\n",
    "a/b@1.2.3 ",
    "a/b@latest",
    "a/b@1.2.3@4.5.6",
    "::a/b",
    "a::",
    "a::b::c",
    "Studio::a/b",
    "../x::a/b",
    "con/x",
    "a/con",
    "a/nul.txt",
    "a/com1",
    "lpt9/x",
    "aux:x",
    "a/b:prn",
    "~/x",
    "$HOME/x",
    "a%2fb",
    "http://a/b",
    "x" * 65,
    f"a/{'x' * 65}",
    f"a/b:{'x' * 65}",
    f"a/b@1.2.3-{'x' * 65}",
    "x" * 100_000,
]

BAD_DIGESTS = [
    "a/b@sha256:",
    "a/b@sha256:../../x",
    f"a/b@sha256:{HEX.upper()}",
    f"a/b@sha256:{HEX}0",
    f"a/b@sha256:{HEX}\n",
]


def test_there_are_enough_bad_references() -> None:
    assert len(set(BAD)) >= 40


@pytest.mark.parametrize("text", GOOD)
def test_reference_is_read_and_written_in_one_way(text: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == GOOD[text]
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_text_that_is_no_reference_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        Reference.parse(text)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", BAD_DIGESTS)
def test_reference_by_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidDigestError):
        Reference.parse(text)


@given(st.text(max_size=40))
def test_any_text_is_a_reference_that_reads_back_or_is_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except ConceptryError:
        return
    written = str(reference)
    assert Reference.parse(written) == reference
    assert written.isascii()
    assert "/../" not in f"/{written}/"


def test_concept_name_cannot_be_built_around_the_parser() -> None:
    for namespace, name in [("..", "x"), ("a", "../x"), ("a/b", "c"), ("", "x"), ("A", "x"), ("a", "x\n")]:
        with pytest.raises(InvalidNameError):
            ConceptName(namespace, name)


@pytest.mark.parametrize("parse", [parse_tag, parse_namespace, parse_remote_name, parse_base_name])
@pytest.mark.parametrize(
    "text", ["", "..", "a/b", "A", "a b", "a\n", "-a", "a.", "con", "nul.x", "x" * 65, "a\0"]
)
def test_every_name_has_the_same_alphabet(parse, text: str) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    with pytest.raises(InvalidNameError):
        parse(text)


def test_selector_is_a_type_and_not_text() -> None:
    assert Reference.parse("a/b").selector == LATEST
    assert Reference.parse("a/b@1.2.3").version == parse_version("1.2.3")
    assert Reference.parse(f"a/b@sha256:{HEX}").selector == Digest(HEX)
    assert Reference.parse("a/b:x").version is None
    assert Reference.parse("a/b").at(Tag("x")) == Reference.parse("a/b:x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.2",
        "1.2.3.4",
        "01.0.0",
        "1.0.0-",
        "1.0.0+",
        "v1.0.0",
        "1.0.0\n",
        " 1.0.0",
        "1.0.0-01",
        "１.0.0",
        "1.0.0-ä",
    ],
)
def test_text_that_is_no_semantic_version_is_refused(text: str) -> None:
    with pytest.raises(InvalidNameError):
        parse_version(text)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("*", ["0.0.1", "9.9.9"], ["1.0.0-rc.1"]),
        ("^1.2", ["1.2.0", "1.99.0"], ["1.1.9", "2.0.0", "2.0.0-rc.1"]),
        ("^1.2.3", ["1.2.3", "1.3.0"], ["1.2.2", "2.0.0"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3.0", "0.2.2"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4", "0.1.0"]),
        ("^0", ["0.0.0", "0.9.9"], ["1.0.0"]),
        ("^0.2", ["0.2.0", "0.2.9"], ["0.3.0"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.3.0"]),
        ("~1", ["1.0.0", "1.9.0"], ["2.0.0"]),
        ("1.2", ["1.2.0", "1.2.9"], ["1.3.0", "1.1.0"]),
        ("1", ["1.0.0", "1.9.9"], ["2.0.0", "0.9.0"]),
        ("1.2.3", ["1.2.3"], ["1.2.4"]),
        ("=1.2.3", ["1.2.3"], ["1.2.4"]),
        (">=1.0,<2.0", ["1.0.0", "1.9.9"], ["2.0.0", "0.9.9"]),
        (">1.0.0", ["1.0.1"], ["1.0.0"]),
        ("<=1.0.0", ["1.0.0", "0.1.0"], ["1.0.1"]),
        (">=1.0.0-rc.1", ["1.0.0-rc.1", "1.0.0-rc.2", "1.0.0", "2.0.0"], ["1.0.0-beta", "2.0.0-rc.1"]),
    ],
)
def test_range_holds_the_versions_that_it_should(text: str, inside: list[str], outside: list[str]) -> None:
    versions = VersionRange(text)
    assert [version for version in inside if parse_version(version) not in versions] == []
    assert [version for version in outside if parse_version(version) in versions] == []


@pytest.mark.parametrize(
    "text", ["", ",", "x", "^", "^x", "1.x", ">=1.0,", "1.2.3.4", "=>1.0", "1.0\n", "^1.2\n", "^１"]
)
def test_text_that_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidNameError):
        VersionRange(text)


def test_requirement_names_a_concept_and_a_range() -> None:
    requirement = Requirement.parse("studio::alice/imp@^1.2")
    assert str(requirement) == "studio::alice/imp@^1.2"
    assert parse_version("1.3.0") in requirement.versions
    assert str(Requirement.parse("imp")) == "local/imp@*"


@pytest.mark.parametrize(
    ("versions", "latest"),
    [
        ([], None),
        (["1.9.0", "1.10.0"], "1.10.0"),
        (["1.0.0", "2.0.0-rc.1"], "1.0.0"),
        (["1.0.0-rc.1", "1.0.0-rc.2"], "1.0.0-rc.2"),
        (["0.0.1"], "0.0.1"),
    ],
)
def test_latest_is_the_greatest_release(versions: list[str], latest: str | None) -> None:
    found = pick_latest(parse_version(version) for version in versions)
    assert (str(found) if found else None) == latest


@pytest.mark.parametrize(
    "text", ["", " ", " x", "x ", "a\nb", "a\0b", "\x1b[31m", "x" * 65, "\u202ex", "a\u200b"]
)
def test_text_that_is_no_placeholder_is_refused(text: str) -> None:
    with pytest.raises(InvalidNameError):
        parse_placeholder(text)


@pytest.mark.parametrize("text", ["<blue-imp>", "sks", "größe", "青い", "a b", "x" * 64])
def test_placeholder_may_be_any_short_word(text: str) -> None:
    assert parse_placeholder(text) == text


@pytest.mark.parametrize("text", ["urn:air:sdxl", "urn:air:sdxl:lora:civitai:1 2", "urn:" + "x" * 5000])
def test_text_that_is_no_air_is_refused(text: str) -> None:
    assert (
        str(parse_source("urn:air:sdxl:lora:civitai:12345@67890")) == "urn:air:sdxl:lora:civitai:12345@67890"
    )
    with pytest.raises(InvalidNameError, match="not an AIR"):
        parse_source(text)
