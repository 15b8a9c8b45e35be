from __future__ import annotations

import click
import pytest

from conceptry.cli.train import train
from conceptry.trainer.methods import TRAINERS


@pytest.mark.parametrize("row", TRAINERS, ids=lambda row: row.id)
def test_the_help_of_train_says_what_each_method_learns(row: object) -> None:
    text = " ".join(train.get_help(click.Context(train, info_name="train")).split())
    assert f"{row.id} {row.summary}" in text  # type: ignore[attr-defined]
