"""``concepts advise``: which method the measured numbers favour, with the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import format_bytes

if TYPE_CHECKING:
    from conceptry.evaluation.advice import Advice, Choice


@click.command(
    "advise",
    cls=ConceptsCommand,
    examples=(
        "concepts advise",
        "concepts advise --concepts 3 --subject style --fineness exact --device large",
    ),
)
@click.option(
    "--concepts", type=click.IntRange(1, 100), default=1, show_default=True, help="To be used together."
)
@click.option(
    "--subject",
    type=click.Choice(["object", "style"]),
    default="object",
    show_default=True,
    help="What is taught.",
)
@click.option(
    "--fineness",
    type=click.Choice(["editable", "balanced", "exact"]),
    default="balanced",
    show_default=True,
    help="What counts more: that prompts are followed, or that the thing is exactly itself.",
)
@click.option(
    "--device",
    type=click.Choice(["processor", "small", "large"]),
    default="small",
    show_default=True,
    help="processor; small: a GPU of 8 to 16 GB; large: one that trains all weights.",
)
@click.option(
    "--figures", type=PATH, metavar="FILE", help="A toybench.json.  [default: the one that was shipped]"
)
@pass_session
def advise(session: Session, /, *, figures: Path | None, **given: Any) -> None:
    """Say which training method the benchmark's numbers favour.

    The figures come from ToyBench, on equal work for every method. Where nothing was measured, that is said.
    """
    from conceptry.evaluation.advice import Need, read_figures
    from conceptry.evaluation.advice import advise as choose

    advice = choose(Need(**given), read_figures(figures))
    session.out.emit(
        {
            "source": advice.source or None,
            "firm": advice.is_firm,
            "choices": [asdict(choice) for choice in advice.choices],
            "remarks": list(advice.remarks),
        },
        _describe(advice),
        quiet=[choice.trainer for choice in advice.choices[:1]],
    )


def _describe(advice: Advice) -> Iterator[str]:
    if advice.choices and not advice.is_firm:
        yield "no firm recommendation; what there is, in its order:"
    for number, choice in enumerate(advice.choices[:3], 1):
        spread = (
            "too few subjects for an interval"
            if choice.interval is None
            else "identity 95 % {:.2f} to {:.2f}".format(*choice.interval)
        )
        yield f"{number}. {choice.method}: {'; '.join(choice.reasons)}"
        yield f"   {spread}, {format_bytes(choice.size_bytes)}: {_write_command(choice)}"
    if not advice.choices:
        yield "no method can be recommended by numbers"
        yield "   concepts benchmark-methods --seconds 2400, then --summary, measures them on this machine"
    for remark in advice.remarks:
        yield f"note: {remark}"


def _write_command(choice: Choice) -> str:
    return " ".join(
        ["concepts train", choice.trainer, *(f"--set {setting}" for setting in choice.settings), "..."]
    )
