"""``concepts demo``: teach, keep, share, compose and draw, from nothing to one sheet, without a network."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH
from conceptry.cli.progress import follow_training, track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import format_bytes, format_seconds
from conceptry.errors import UsageError
from conceptry.names import ConceptName, Reference, RemoteName, parse_version

if TYPE_CHECKING:
    from conceptry.concepts import Concept
    from conceptry.evaluation.demonstration import DemoComposition, DemoConcept, Demonstration, DemoSubject
    from conceptry.evaluation.sheets import SheetRow

MARKER: Final = ".conceptry-demo"
REMOTE: Final = RemoteName("shared")
VERSION: Final = parse_version("1.0.0")
_OWN: Final = ("pictures", "training", "store", "remote", "other-store", "cells")


@click.command("demo", cls=ConceptsCommand, examples=("concepts demo --out demo-out",))
@click.option(
    "--out", type=PATH, metavar="DIR", default=Path("demo-out"), show_default=True, help="Where it all goes."
)
@click.option("--steps", type=click.IntRange(1), help="Train this many steps only, for a quick look.")
@pass_session
def demo(session: Session, /, out: Path, steps: int | None) -> None:
    """Teach, share, compose and draw a few concepts, and show it on one sheet.

    Renders two things and a style that the bundled base has never seen, teaches it one concept with each method,
    publishes them, pushes them to a remote in a folder, pulls them into a second, empty store, composes several and
    draws everything on sheet.png. Your own store is not touched.
    """
    session.forbid_network()
    started = time.perf_counter()
    from conceptry.evaluation.demonstration import load_demonstration

    stage = _Stage(session, prepare_folder(out), load_demonstration(), steps)
    stage.teach()
    stage.share()
    stage.draw()
    stage.compose()
    report = stage.report(time.perf_counter() - started)
    session.out.emit(
        report, [*_summarise(report), f"sheet: {out / 'sheet.png'}", f"report: {out / 'report.json'}"]
    )


def prepare_folder(out: Path) -> Path:
    """Returns ``out``, empty but for what is not ours. Raises UsageError for a folder of somebody else."""
    marker = out / MARKER
    if out.exists() and not marker.is_file() and any(out.iterdir()):
        raise UsageError(f"{str(out)!r} is not empty and no earlier demonstration", hint="name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for name in _OWN:
        shutil.rmtree(out / name, ignore_errors=True)
    return out


@dataclass(slots=True)
class _Taught:
    """A concept of the demonstration and what became of it."""

    plan: DemoConcept
    subject: DemoSubject
    seconds: float
    concept: Concept
    entry: dict[str, Any] = field(default_factory=dict)


class _Stage:
    """The demonstration while it runs."""

    def __init__(self, session: Session, out: Path, plan: Demonstration, steps: int | None) -> None:
        from conceptry.bases import FamilyId
        from conceptry.cli.bases import choose_base, open_base
        from conceptry.registry import Registry

        self.session, self.out, self.plan, self.steps = session, out, plan, steps
        self.pipeline = open_base(session, choose_base(session, FamilyId("toybox")))
        self.first, self.second = Registry(out / "store"), Registry(out / "other-store")
        self.taught: dict[str, _Taught] = {}
        self.rows: list[SheetRow] = []
        self.compositions: list[dict[str, Any]] = []

    # --- teach and share -------------------------------------------------------------------------------------------

    def teach(self) -> None:
        """Renders the subjects and trains one concept with each method."""
        from conceptry.toybox import render_instance, render_style

        for subject in self.plan.subjects:
            folder = self.out / "pictures" / subject.id
            if subject.is_style:
                render_style(subject.seed, self.plan.pictures, folder)
            else:
                render_instance(subject.cls, subject.seed, self.plan.pictures, folder)
        for concept in self.plan.concepts:
            self._teach_one(concept)

    def _teach_one(self, plan: DemoConcept) -> None:
        from conceptry.trainer.jobs import make_job
        from conceptry.trainer.training import train

        subject = self.plan.find_subject(plan)
        job = make_job(
            {
                "method": plan.method,
                "images": self.out / "pictures" / plan.subject,
                "name": plan.name,
                "version": str(VERSION),
                "placeholder": plan.placeholder,
                "superclass": plan.superclass,
                "subject": "style" if subject.is_style else "object",
                "seed": self.plan.seed,
                "license": "CC0-1.0",
                **({"steps": self.steps} if self.steps else {}),
            }
        )
        with track(self.session.out, plan.name) as meter:
            result = train(
                job,
                on_event=follow_training(meter, self.session.out),
                workdir=self.out / "training" / plan.name.replace("/", "-"),
                cache_folder=self.out / "training" / "cache",
                base=self.pipeline,
            )
        self.first.publish(result.folder)
        self.taught[plan.name] = _Taught(
            plan=plan, subject=subject, seconds=result.seconds, concept=result.concept
        )
        self.session.out.note(f"taught {plan.name} with {plan.method} in {format_seconds(result.seconds)}")

    def share(self) -> None:
        """Pushes all to a remote in a folder and pulls them into the second, empty store, from which they are used."""
        uri = (self.out / "remote").resolve().as_uri()
        for registry in (self.first, self.second):
            registry.add_remote(REMOTE, uri)
        for name, taught in self.taught.items():
            reference = Reference(ConceptName.parse(name), VERSION)
            self.first.push(reference, REMOTE)
            self.second.pull(Reference(reference.concept, VERSION, REMOTE))
            taught.concept = self.second.get(reference)
        self.session.out.note(f"shared {len(self.taught)} concepts through {uri}")

    # --- draw and measure ------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Draws the base's own row, then each concept's, and measures each concept."""
        from conceptry.evaluation.concepts import ExamOptions, evaluate_concept
        from conceptry.evaluation.demonstration import draw_composed, draw_row, fill_prompts
        from conceptry.evaluation.sheets import SheetRow

        own = draw_row(self.pipeline, fill_prompts(self.plan.prompts), self.plan.seed)
        self.rows.append(SheetRow("the base itself", "a creature", (_blank(), *own)))
        for name, taught in self.taught.items():
            with track(self.session.out, f"drawing {name}") as meter:
                prompts = fill_prompts(self.plan.prompts, **self._words(taught))
                pictures = draw_composed(self.pipeline, [(taught.concept, 1.0)], prompts, self.plan.seed)
                scores = evaluate_concept(
                    taught.concept, self.pipeline, ExamOptions(thorough=False), on_progress=meter.update
                )
            taught.entry = self._describe(taught, scores.to_json())
            note = f"{taught.plan.method}, identity {scores.identity.normalised:.2f}"
            self.rows.append(SheetRow(name, note, (self._examples(taught.subject), *pictures)))

    def _words(self, taught: _Taught) -> dict[str, str]:
        from conceptry.evaluation.demonstration import word_style, word_subject

        if taught.subject.is_style:
            return {"style": word_style(taught.concept)}
        return {"subject": word_subject(taught.concept)}

    def _describe(self, taught: _Taught, scores: Mapping[str, Any]) -> dict[str, Any]:
        manifest = taught.concept.manifest
        return {
            "ref": str(Reference(manifest.name, manifest.version)),
            "digest": str(taught.concept.digest),
            "kind": manifest.kinds[0],
            "method": taught.plan.method,
            "bytes": manifest.size_bytes,
            "seconds": round(taught.seconds, 1),
            "identity": scores["identity"],
            "prompt": scores["prompt"],
        }

    def compose(self) -> None:
        """Draws each composition's row and measures every member in it."""
        from conceptry.evaluation.demonstration import draw_composed, fill_prompts, score_members
        from conceptry.evaluation.sheets import SheetRow
        from conceptry.toybox.scorer import Scorer

        scorer = Scorer.load()
        for composition in self.plan.compositions:
            members = [
                (self.taught[name].concept, strength) for name, strength in composition.concepts.items()
            ]
            with track(self.session.out, f"composing {composition.title}"):
                prompts = fill_prompts(self.plan.prompts, **self._compose_words(composition))
                pictures = draw_composed(self.pipeline, members, prompts, self.plan.seed)
                scores = score_members(scorer, [concept for concept, _ in members], pictures)
            self.rows.append(
                SheetRow(composition.title, " + ".join(composition.concepts), (_blank(), *pictures))
            )
            self.compositions.append(
                {
                    "title": composition.title,
                    "concepts": dict(composition.concepts),
                    "prompts": prompts,
                    "identity": scores,
                }
            )

    def _compose_words(self, composition: DemoComposition) -> dict[str, str]:
        from conceptry.evaluation.demonstration import word_style, word_subject

        subject = word_subject(self.taught[composition.subject].concept)
        if composition.second:
            subject = f"{subject} to the left of {word_subject(self.taught[composition.second].concept)}"
        style = word_style(self.taught[composition.style].concept) if composition.style else ""
        return {"subject": subject, "style": style}

    # --- the result ------------------------------------------------------------------------------------------------

    def report(self, seconds: float) -> dict[str, Any]:
        """Writes ``sheet.png`` and ``report.json`` and returns the latter."""
        from conceptry.evaluation.sheets import draw_sheet, save_sheet

        columns = ["taught from", *(prompt.format(subject="…", style="") for prompt in self.plan.prompts)]
        save_sheet(draw_sheet(columns, self.rows), self.out / "sheet.png")
        document = {
            "seconds": round(seconds, 1),
            "concepts": [taught.entry for taught in self.taught.values()],
            "compositions": self.compositions,
        }
        partial = self.out / ".report.json.partial"
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.out / "report.json")
        return document

    def _examples(self, subject: DemoSubject) -> Any:
        from PIL import Image

        paths = sorted((self.out / "pictures" / subject.id).glob("*.png"))[:4]
        cell = Image.new("RGB", (128, 128), (255, 255, 255))
        for index, path in enumerate(paths):
            with Image.open(path) as picture:
                cell.paste(picture.convert("RGB").resize((63, 63)), (65 * (index % 2), 65 * (index // 2)))
        return cell


def _blank() -> Any:
    from PIL import Image

    return Image.new("RGB", (128, 128), (255, 255, 255))


def _summarise(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for entry in report["concepts"]:
        identity, prompt = entry["identity"], entry["prompt"]
        lines.append(
            f"{entry['ref']}: {entry['method']}, {format_bytes(entry['bytes'])}, {format_seconds(entry['seconds'])}, "
            f"identity {identity['score']:.2f} between {identity['floor']:.2f} and {identity['ceiling']:.2f}, "
            f"prompt {prompt['score']:.2f} of the base's {prompt['base']:.2f}"
        )
    return [*lines, f"all in {format_seconds(report['seconds'])}"]
