"""A quick search finds what the thorough one finds, whatever the letters and however many words begin alike."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlite_utils import Database

from conceptry.digests import Digest
from conceptry.names import ConceptName, Reference, parse_version
from conceptry.registry.entries import Entry, choose_latest, make_entry
from conceptry.registry.index import fill_index
from conceptry.registry.listing import Filter, query_search
from conceptry.registry.refs import Resolved
from conceptry.registry.rows import seal_row

TITLES = (
    "Étoile filante", "etoile", "ETOILES bleues", "snake_case imp", "blue2moon", "Ünder übung", "東京の夜", "東京",
    "imp", "impish", "imp2 of stone", "stones", "stone storm", "storm", "copper stone", "it's a cup",
    *(f"serial{number:03} of things" for number in range(60)),
)  # fmt: skip
QUESTIONS = (
    "e", "etoil", "Étoi", "étoile", "snake", "snake_ca", "case im", "blue2", "ub", "Übu", "東", "東京", "im", "imp",
    "imp st", "sto", "stone sto", "st st", "sto co", "serial", "serial0", "serial01", "serial of", "of seri",
    "thing seria", "it's", "it s cu", "nothing", "stone nothing", "no stone", "things of",
)  # fmt: skip


def _make_entry(title: str, number: int) -> Entry:
    document: dict[str, Any] = {
        "schema": 1,
        "name": f"me/thing-{number}",
        "version": "1.0.0",
        "title": title,
        "builds": [],
    }
    version = parse_version("1.0.0")
    reference = Reference(ConceptName("me", f"thing-{number}"), version)
    entry = make_entry(Resolved(reference, Digest.of_bytes(title.encode())), document, "published")
    choose_latest([(version, entry.row)], {})
    return Entry(seal_row(entry.row), entry.files)


@pytest.fixture(scope="module")
def index() -> Iterator[sqlite3.Connection]:
    """Give an index of the titles."""
    database = Database(memory=True, execute_plugins=False)
    with closing(database.conn):
        entries = (_make_entry(title, number) for number, title in enumerate(TITLES))
        fill_index(database, entries, lambda: "test")
        yield database.conn


@pytest.mark.parametrize("question", QUESTIONS)
def test_quick_search_finds_what_the_thorough_one_finds(index: sqlite3.Connection, question: str) -> None:
    quick = query_search(index, question, Filter(limit=100, most_found=300))
    thorough = query_search(index, question, Filter())
    assert {row.text for row in quick.rows} == {row.text for row in thorough.rows}
    assert (quick.count, quick.is_all) == (thorough.count, True)


@pytest.mark.parametrize("question", ["serial", "serial0", "of seri"])
def test_quick_search_that_ends_early_says_so(index: sqlite3.Connection, question: str) -> None:
    quick = query_search(index, question, Filter(limit=5, most_found=7))
    assert (len(quick.rows), quick.count, quick.is_all) == (5, 7, False)


def test_whole_words_come_before_those_that_only_begin_so(index: sqlite3.Connection) -> None:
    found = query_search(index, "imp", Filter(limit=1, most_found=1))
    assert found.rows[0].title in {"snake_case imp", "imp"}
    assert query_search(index, "stone storm", Filter(limit=1, most_found=1)).rows[0].title == "stone storm"
