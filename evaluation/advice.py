"""Which method to take: what ToyBench measured, weighed by what somebody needs, with the numbers.

The figures are those of ``docs/toybench.json`` as it was shipped. They come from a small base in a drawn world: they
say how methods compare, not what they reach on a large base; where there are none, that is said, nothing is invented.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from conceptry.bases import FamilyId
from conceptry.errors import InvalidFileError, NotFoundError
from conceptry.evaluation.toybench import load_suite
from conceptry.trainer.methods import TRAINER_BY_ID
from conceptry.trainer.settings import resolve_settings

SHIPPED_NAME: Final = "toybench.json"
Fineness = Literal["editable", "balanced", "exact"]
DeviceClass = Literal["processor", "small", "large"]

# Weight of identity against prompt agreement in their weighted harmonic mean: F-measure with this beta.
_BETA: Final[Mapping[Fineness, float]] = {"editable": 0.5, "balanced": 1.0, "exact": 2.0}
# A preset that trains this pattern holds gradients of all weights, which wants a large device.
_ALL_WEIGHTS: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What somebody wants to do."""

    concepts: int = 1
    subject: Literal["object", "style"] = "object"
    fineness: Fineness = "balanced"
    device: DeviceClass = "small"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One method, how well it answers the need, the numbers behind that, and the command that uses it."""

    method: str
    trainer: str
    score: float
    identity: float
    interval: tuple[float, float] | None
    prompt: float
    subjects: int
    size_bytes: int
    settings: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The choices, best first; none where nothing was measured."""

    need: Need
    source: str
    choices: tuple[Choice, ...]
    remarks: tuple[str, ...]


def read_figures(path: Path | None) -> tuple[str, Mapping[str, Any]] | None:
    """Returns where the figures come from and what they are; None where none are shipped and no file is named.

    Raises:
        NotFoundError: if the named file is not there.
        InvalidFileError: if it is no summary of the benchmark.
    """
    if path is not None:
        if not path.is_file():
            raise NotFoundError(
                f"no figures at {str(path)!r}",
                hint="concepts benchmark-methods --summary writes toybench.json",
            )
        return str(path), _parse(path.read_text(encoding="utf-8"), str(path))
    shipped = files(__package__).joinpath(SHIPPED_NAME)
    if shipped.is_file():
        return "the figures that were shipped", _parse(shipped.read_text(encoding="utf-8"), SHIPPED_NAME)
    beside = Path(__file__).resolve().parent.parent / "docs" / SHIPPED_NAME
    if beside.is_file():
        return str(beside), _parse(beside.read_text(encoding="utf-8"), str(beside))
    return None


def _parse(text: str, name: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
        rows = [*document["rows"], *document.get("styles", ())]
        for row in rows:
            str(row["method"]), float(row["identity"]), float(row["prompt"]), list(row["interval"] or ())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidFileError(
            f"{name!r} is no summary of the benchmark", hint="concepts benchmark-methods --summary writes one"
        ) from error
    return document  # type: ignore[no-any-return]


def advise(need: Need, figures: tuple[str, Mapping[str, Any]] | None) -> Advice:
    """Returns the methods that the figures favour for a need, best first, each with its numbers."""
    if figures is None:
        remark = "nothing was measured yet, so nothing can be recommended by numbers"
        return Advice(need=need, source="", choices=(), remarks=(remark,))
    source, document = figures
    rows = document.get("styles", ()) if need.subject == "style" else document["rows"]
    choices = [choice for choice in (_judge(row, need) for row in rows) if choice is not None]
    remarks = [*_list_remarks(document, need), *_list_gaps(rows, need)]
    ordered = sorted(choices, key=lambda one: (-one.score, one.size_bytes, one.method))
    return Advice(need=need, source=source, choices=tuple(ordered), remarks=tuple(remarks))


def _judge(row: Mapping[str, Any], need: Need) -> Choice | None:
    """Returns the row as a choice; None where the device cannot carry it or no trainer of ours makes it."""
    variants = {one.id: one for one in load_suite().variants}
    variant = variants.get(row["method"])
    trainer = TRAINER_BY_ID.get(variant.method if variant else row["method"])
    if trainer is None or (need.device != "large" and trains_all_weights(trainer.id)):
        return None
    identity, prompt = float(row["identity"]), float(row["prompt"])
    score = weigh(identity, prompt, _BETA[need.fineness])
    subjects = int(row.get("instances", row.get("styles", 0)))
    reasons = [f"identity {identity:.2f}, prompt {prompt:.2f} over {subjects} subjects"]
    preservation = row.get("preservation")
    if need.concepts > 1 and isinstance(preservation, int | float):
        # What moves the superclass when it is not called disturbs the other concepts of a composition too.
        score *= max(0.0, min(1.0, float(preservation))) ** (need.concepts - 1)
        reasons.append(
            f"leaves {float(preservation):.0%} of the superclass as it was, which {need.concepts} concepts need"
        )
    settings = dict(variant.settings) if variant else {}
    gate = {f"gate.{key}": value for key, value in (variant.gate or {}).items()} if variant else {}
    interval = row["interval"]
    return Choice(
        method=str(row["method"]),
        trainer=trainer.id,
        score=score,
        identity=identity,
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        prompt=prompt,
        subjects=subjects,
        size_bytes=int(row.get("size_bytes", 0)),
        settings=tuple(f"{key}={json.dumps(value)}" for key, value in {**settings, **gate}.items()),
        reasons=tuple(reasons),
    )


def trains_all_weights(method: str) -> bool:
    """Returns whether a method's preset trains the denoiser as a whole."""
    return _ALL_WEIGHTS in resolve_settings(method, FamilyId("sd1"), {}).targets


def weigh(identity: float, prompt: float, beta: float) -> float:
    """Returns the F-measure of two scores, brought into [0, 1] first; ``beta`` above 1 weighs identity more."""
    one, other = (min(1.0, max(0.0, value)) for value in (identity, prompt))
    if not math.isfinite(one + other) or one + other == 0:
        return 0.0
    square = beta * beta
    return (1 + square) * one * other / (square * other + one)


def _list_remarks(document: Mapping[str, Any], need: Need) -> list[str]:
    base = document.get("base", {})
    passes = document.get("sample_passes") or "its own number of"
    remarks = [
        f"measured on {base.get('family', 'an unknown base')} with {passes} sample passes for each method: an order of "
        "methods, not what they reach on a larger base"
    ]
    if need.concepts > 1 and "compositions" not in document:
        remarks.append(
            "how several concepts do together was not measured: preservation of the superclass stands for it"
        )
    if need.device != "large":
        remarks.append("methods that train all weights are left out: they need a large device")
    return remarks


def _list_gaps(rows: Sequence[Mapping[str, Any]], need: Need) -> list[str]:
    measured = {str(row["method"]) for row in rows}
    missing = [id for id in TRAINER_BY_ID if id not in measured]
    if not rows:
        return [f"no method was measured on a {need.subject}"]
    return [f"not measured: {', '.join(missing)}"] if missing else []
