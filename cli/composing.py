"""How concepts are used beside their strengths, as options: when, where, in which parts, and in which way together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from conceptry.cli.compose_types import (
    PartType,
    RegionPromptType,
    RegionType,
    ScheduleType,
    explain_refusal,
)
from conceptry.errors import UsageError

if TYPE_CHECKING:
    from conceptry.composer.masks import Mask
    from conceptry.composition import CompositionDocument, Region, Use

F = TypeVar("F", bound=Callable[..., Any])

# The rows of composer/ways.py, named here too so that help needs no torch.
WAYS: Final = ("sum", "switch", "composite", "focus")
MAX_PERIOD_STEPS: Final = 1000

_OPTIONS: Final = (
    click.option(
        "--schedule",
        "schedules",
        type=ScheduleType(),
        multiple=True,
        metavar="NS/NAME:START..STOP[~RAMP]",
        help="In effect for these shares of the steps: 'me/look:0.3..', 'me/look:..0.6~0.1'.",
    ),
    click.option(
        "--region",
        "regions",
        type=RegionType(),
        multiple=True,
        metavar="NS/NAME:BOX|MASK",
        help="In effect inside LEFT,TOP,RIGHT,BOTTOM[~FEATHER], as shares of the picture, or where a PNG is white.",
    ),
    click.option(
        "--region-prompt",
        "region_prompts",
        type=RegionPromptType(),
        multiple=True,
        metavar="NS/NAME:TEXT",
        help="What is drawn inside the concept's region.  [default: the whole picture's prompt]",
    ),
    click.option(
        "--part",
        "parts",
        type=PartType(),
        multiple=True,
        metavar="NS/NAME:PART=SHARE",
        help="Times the strength in a component or block: 'me/imp:text_encoder=0'.",
    ),
    click.option(
        "--way",
        type=click.Choice(WAYS),
        help="All at once; by turns (LoRA Switch); the mean of each alone (LoRA Composite); each alone where it "
        "changes most.  [default: focus to draw several whose words are said, else sum]",
    ),
    click.option(
        "--period",
        type=click.IntRange(1, MAX_PERIOD_STEPS),
        help="Steps of each turn of --way switch.  [default: 5]",
    ),
)
_NAMES: Final = ("schedules", "regions", "region_prompts", "parts", "way", "period")


def use_options(function: F) -> F:
    """Adds the options that say how each concept is used, and all together; ``use_concepts`` follows them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def is_asked(given: Mapping[str, Any]) -> bool:
    """Returns whether any option of ``use_options`` was given."""
    return any(given[name] for name in _NAMES)


def use_concepts(
    document: CompositionDocument, given: Mapping[str, Any]
) -> tuple[CompositionDocument, tuple[Mask, ...]]:
    """Returns the document as the options have it, and the masks that they name.

    Raises:
        UsageError: if a concept is named that is not there, something is said twice, or two things do not go together.
        NotFoundError, InvalidFileError: if a mask cannot be read.
    """
    if not is_asked(given):
        return document, ()
    from conceptry.composition import CompositionDocument

    way = given["way"] or document.way
    if given["period"] is not None and way != "switch":
        raise UsageError("--period is of --way switch", hint="add --way switch, or leave it out")
    masks: list[Mask] = []
    try:
        found = _change_uses(document, given, masks)
        members = tuple(
            type(member).model_validate({**dict(member), **found[str(member.reference.concept)]})
            for member in document.concepts
        )
        changed = CompositionDocument(
            base=document.base, concepts=members, way=way, period=given["period"] or document.period
        )
    except ValueError as error:
        raise UsageError(explain_refusal(error)) from error
    return changed, tuple(masks)


def _change_uses(
    document: CompositionDocument, given: Mapping[str, Any], masks: list[Mask]
) -> dict[str, dict[str, Any]]:
    """Returns how each concept is used, by its name; masks that are read are added to ``masks``."""
    from conceptry.composition import Use

    found: dict[str, dict[str, Any]] = {
        str(member.reference.concept): {name: getattr(member, name) for name in Use.model_fields}
        for member in document.concepts
    }
    for name, schedule in _once("--schedule", given["schedules"], found):
        found[name]["schedule"] = schedule
    for name, region in _once("--region", given["regions"], found):
        found[name]["region"] = _read_region(region, masks)
    for name, prompt in _once("--region-prompt", given["region_prompts"], found):
        found[name]["region"] = _add_prompt(name, found[name]["region"], prompt)
    for name, (part, share) in _named("--part", given["parts"], found):
        found[name]["parts"] = {**found[name]["parts"], part: share}
    return found


def _named(
    option: str, given: tuple[tuple[str, Any], ...], found: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    for name, value in given:
        if name not in found:
            raise UsageError(
                f"{option} is for {name!r}, which is not in the composition",
                hint=f"it has {', '.join(found)}",
            )
        yield name, value


def _once(
    option: str, given: tuple[tuple[str, Any], ...], found: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    names = [name for name, _ in given]
    for name, value in _named(option, given, found):
        if names.count(name) > 1:
            raise UsageError(
                f"{name} has {option} twice", hint="name it once; one mask may be white in several places"
            )
        yield name, value


def _read_region(given: Region | Path, masks: list[Mask]) -> Region:
    if not isinstance(given, Path):
        return given
    from conceptry.composer.masks import read_mask
    from conceptry.composition import Region

    masks.append(read_mask(given))
    return Region(mask=masks[-1].digest)


def _add_prompt(name: str, region: Region | None, prompt: str) -> Region:
    if region is None:
        raise UsageError(
            f"{name} has no region that a prompt could be for", hint=f"add --region '{name}:0,0,0.5,1'"
        )
    return type(region).model_validate({**dict(region), "prompt": prompt})


def describe_use(use: Use) -> Iterator[str]:
    """Returns in words how a concept is used beside its strength; nothing where it is everywhere and always."""
    for part, share in use.parts.items():
        yield f"{part} at {share:g} times"
    if use.schedule is not None:
        ramp = f", rising and falling over {use.schedule.ramp:g}" if use.schedule.ramp else ""
        yield f"from {use.schedule.start:g} to {use.schedule.stop:g} of the steps{ramp}"
    region = use.region
    if region is not None:
        where = f"the mask {region.mask.short}" if region.mask else f"the box {list(region.box or ())}"
        edge = f" with an edge of {region.feather:g}" if region.feather else ""
        prompt = f", drawn by {region.prompt!r}" if region.prompt else ""
        yield f"inside {where}{edge}{prompt}"
