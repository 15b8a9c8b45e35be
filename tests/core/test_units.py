"""Numbers in words."""

from __future__ import annotations

import pytest

from conceptry.units import format_bytes


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (13_449, "13.4 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (2_000_000_000, "2.0 GB"),
        (5_000_000_000_000_000, "5000.0 TB"),
    ],
)
def test_size_is_told_in_the_greatest_unit_that_it_fills(count_bytes: int, text: str) -> None:
    assert format_bytes(count_bytes) == text
