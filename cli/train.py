"""``concepts train``: from a folder of pictures to a published version."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.cli.bases import TOYBOX
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, SEED, SETTING
from conceptry.cli.progress import follow_training, is_tracked, track
from conceptry.cli.publish import publish_folder, to_json
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import format_bytes, format_seconds
from conceptry.cli.train_many import TOGETHER, describe_plan, train_jobs
from conceptry.errors import ConflictError, NotFoundError, UsageError
from conceptry.names import ConceptName, Reference, parse_placeholder, parse_version

if TYPE_CHECKING:
    from conceptry.registry.publish import Published
    from conceptry.trainer.events import WatchOptions
    from conceptry.trainer.jobs import TrainJob
    from conceptry.trainer.training import TrainResult

# Options of this run, which say nothing of the concept.
_NOT_OF_THE_JOB: Final = frozenset(
    {"job", "jobs", "shard", "together", "engine", "recipe", "like", "resume", "dry_run", "workdir"}
)
_NEEDED: Final = ("images", "name", "placeholder", "superclass")


def _read_further(rows: Sequence[tuple[str, str, Path]]) -> list[dict[str, Any]]:
    return [
        {"placeholder": parse_placeholder(word), "superclass": superclass, "images": images}
        for word, superclass, images in rows
    ]


# Parsed here, so that a fault is explained as everywhere else.
_PARSE: Final[Mapping[str, Callable[[Any], Any]]] = {
    "name": ConceptName.parse,
    "version": parse_version,
    "placeholder": parse_placeholder,
    "also": _read_further,
}


Say = Callable[[str], None]


def _drop(text: str) -> None:
    """Says nothing."""


class TrainCommand(ConceptsCommand):
    """``concepts train``, whose help lists the methods as their own table has them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes what each method learns, then the options."""
        from conceptry.trainer.methods import TRAINERS

        with formatter.section("Methods"):
            formatter.write_dl([(row.id, row.summary) for row in TRAINERS])
        super().format_options(ctx, formatter)


@click.command(
    "train",
    cls=TrainCommand,
    examples=(
        "concepts train lora --images imp --name me/imp --placeholder '<imp>' --superclass creature",
        "concepts train perfusion --images imp --name me/imp --version 0.2.0 --placeholder '<imp>' "
        "--superclass creature --base toybox --seed 1 --steps 200",
        "concepts train lora --images cat --name me/both --placeholder '<tom>' --superclass cat "
        "--also '<rex>' dog pictures/dog",
        "concepts train --job imp.toml --resume",
        "concepts train --jobs jobs.toml --shard 2/4",
        "concepts train --from kohya.toml --name me/imp --base toybox",
    ),
)
@click.argument("method", required=False)
@click.option(
    "--images", type=PATH, metavar="DIR", help="Folder of pictures; captions.jsonl or NAME.txt beside them."
)
@click.option("--name", metavar="NS/NAME", help="What the concept is to be called.")
@click.option("--version", metavar="V", help="Its version.  [default: 0.1.0]")
@click.option("--placeholder", metavar="WORD", help="The word that will call it, such as '<imp>'.")
@click.option("--superclass", metavar="WORD", help="The ordinary word that it specialises, such as creature.")
@click.option(
    "--also",
    type=(str, str, PATH),
    multiple=True,
    metavar="WORD SUPERCLASS DIR",
    help="Learn a further subject in the same run: its placeholder, superclass and folder; may be repeated.",
)
@click.option(
    "--base", metavar="BASE", help="What it is taught to: see concepts base list.  [default: toybox]"
)
@click.option(
    "--subject", type=click.Choice(["object", "style"]), help="Whether the pictures share a thing or a look."
)
@click.option("--seed", type=SEED, help="The same seed gives the same file on a processor.  [default: 0]")
@click.option("--steps", type=click.IntRange(1), help="How long to train.  [default: the method's]")
@click.option(
    "--set", "settings", type=SETTING, multiple=True, help="Change one number of the method: --set rank=16."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to compute.")
@click.option(
    "--precision", type=click.Choice(["auto", "float32", "bfloat16"]), help="In which precision to compute."
)
@click.option("--captions", type=PATH, metavar="FILE", help="Lines for the base's covariance (perfusion).")
@click.option("--title", metavar="TEXT", help="A title for listings.")
@click.option("--description", metavar="TEXT", help="What others should know of it.")
@click.option("--license", metavar="SPDX", help="The concept's licence, such as CC0-1.0.")
@click.option(
    "--job", type=PATH, metavar="FILE", help="A TOML file with these options; what is given here wins."
)
@click.option(
    "--jobs",
    type=PATH,
    metavar="FILE",
    help="Train every job of a TOML file: [defaults] and [[jobs]] tables.",
)
@click.option("--shard", metavar="I/N", help="Train every N-th job of the file, from the I-th on.")
@click.option(
    "--together",
    type=click.IntRange(1, 1024),
    help=f"How many jobs of the file share a batch at most.  [default: {TOGETHER}]",
)
@click.option(
    "--engine",
    type=click.Choice(["here", "ray"]),
    help="Where the jobs of the file are trained: in this process, or on the cluster of RAY_ADDRESS.  [default: here]",
)
@click.option(
    "--from",
    "recipe",
    type=PATH,
    metavar="FILE",
    help="Take over the configuration of sd-scripts, OneTrainer or ai-toolkit, or a folder such as '10_sks dog'.",
)
@click.option(
    "--like",
    type=PATH,
    metavar="FILE",
    help="Train as this .safetensors file, train.json or version of the store was, by its metadata or record.",
)
@click.option(
    "--workdir", type=PATH, metavar="DIR", help="For checkpoints.  [default: a folder of the store]"
)
@click.option(
    "--resume", is_flag=True, help="Go on from the newest checkpoint of the same job, or begin where none is."
)
@click.option(
    "--previews", is_flag=True, help="Draw it at 0, 25, 50, 75 and 100 % of the run, from fixed seeds."
)
@click.option("--curves", is_flag=True, help="Draw the losses as curves.png in the run's folder.")
@click.option("--tensorboard", type=PATH, metavar="DIR", help="Write losses and previews for TensorBoard.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done and what it needs on this device, and stop."
)
@pass_session
def train(session: Session, /, *, resume: bool, dry_run: bool, workdir: Path | None, **given: Any) -> None:
    """Teach a base a concept from a folder of pictures.

    METHOD is one of those below. Four to six pictures of one thing are a good start. The result is published into
    the store. Ctrl-C saves the state, and --resume goes on bit for bit.
    """
    watch = _take_watch(session, given)
    if given["jobs"] is not None:
        if watch.previews or watch.curves or watch.tensorboard is not None:
            raise UsageError(
                "--previews, --curves and --tensorboard are of one job",
                hint="train that job by itself: concepts train --job FILE",
            )
        train_jobs(session, given, workdir=workdir, resume=resume, dry_run=dry_run)
        return
    for name in ("shard", "together", "engine"):
        if given[name] is not None:
            raise UsageError(f"--{name} is of several jobs", hint="give them with --jobs FILE")
    given["like"] = _find_record(session, given["like"])
    job = make_job(given, tell=(session.out.note, session.out.warn))
    refuse_existing(session, job)
    if dry_run:
        _report_plan(session, job)
        return
    result = run_job(session, job, workdir=workdir, resume=resume, watch=watch)
    if not result.leads:
        return
    published = publish_folder(session, result.folder)
    _report(session, job, result, published)
    _report_pictures(session, result.folder.parent, watch)


def _find_record(session: Session, like: Path | None) -> Path | None:
    """Returns the file to train like: a path as it is, for a version of the store what training left beside it."""
    if like is None or like.exists() or like.suffix in (".safetensors", ".json"):
        return like
    shown = session.registry.show(Reference.parse(like.as_posix()))
    if shown.record is None:
        raise UsageError(
            f"nothing is recorded of how {shown.reference} was made",
            hint="--like takes a .safetensors file too",
        )
    return shown.record


def _take_watch(session: Session, given: dict[str, Any]) -> WatchOptions:
    """Returns what is wanted beside the concept, which ``given`` then no longer says."""
    from conceptry.trainer.events import WatchOptions

    wanted = {name: given.pop(name) for name in ("previews", "curves", "tensorboard")}
    return WatchOptions(**wanted, share=is_tracked(session.out))


def _report_pictures(session: Session, folder: Path, watch: WatchOptions) -> None:
    from conceptry.trainer.curves import CURVES_NAME
    from conceptry.trainer.previews import OVERVIEW_NAME

    for wanted, name in ((watch.previews, OVERVIEW_NAME), (watch.curves, CURVES_NAME)):
        if wanted and (folder / name).is_file():
            session.out.note(f"{folder / name}")
    if watch.tensorboard is not None:
        session.out.note(f"hint: tensorboard --logdir {shlex.quote(str(watch.tensorboard))}")


def make_job(given: Mapping[str, Any], *, tell: tuple[Say, Say] = (_drop, _drop)) -> TrainJob:
    """Returns the job that options describe, over those of ``--job``, ``--from`` or ``--like``. Raises UsageError."""
    from conceptry.trainer import jobs
    from conceptry.trainer.methods import TRAINER_BY_ID, find_trainer

    written: dict[str, Any] = {}
    if given.get("job") is not None:
        job = jobs.read_job(given["job"])
        written = {name: getattr(job, name) for name in job.model_fields_set}
    elif given.get("recipe") is not None or given.get("like") is not None:
        written = _take_over(given, *tell)
    said = {
        key: value for key, value in given.items() if value not in (None, ()) and key not in _NOT_OF_THE_JOB
    }
    settings = {**written.get("settings", {}), **_nest(said.pop("settings", ()))}
    values = {**written, **{key: _PARSE.get(key, _keep)(value) for key, value in said.items()}}
    if "method" not in values:
        raise UsageError(
            "no training method is named", hint=f"concepts train METHOD: {', '.join(TRAINER_BY_ID)}"
        )
    find_trainer(values["method"])
    missing = [f"--{key}" for key in _NEEDED if key not in values]
    if missing:
        raise UsageError(
            f"concepts train needs {' and '.join(missing)}", hint="concepts train --help has examples"
        )
    return jobs.make_job({**values, **({"settings": settings} if settings else {})})


def _take_over(given: Mapping[str, Any], say: Say, warn: Say) -> dict[str, Any]:
    """Returns what another program's configuration asks for; says what is taken over and what is not."""
    from conceptry.trainer.recipes import read_metadata, read_recipe

    like = given.get("like")
    recipe = read_recipe(given["recipe"]) if like is None else read_metadata(like)
    say(f"from {recipe.title}:")
    for theirs, ours in recipe.mapped:
        say(f"  {theirs} -> {ours}")
    for theirs, why in recipe.unmapped:
        warn(f"{theirs}: not used, {why}")
    return recipe.values


def _keep(value: Any) -> Any:
    return value


def _nest(pairs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Returns ``learning_rates.lora=1e-4`` as a table in a table."""
    nested: dict[str, Any] = {}
    for name, value in pairs:
        table, dot, key = name.partition(".")
        if dot:
            nested.setdefault(table, {})[key] = value
        else:
            nested[name] = value
    return nested


def refuse_existing(session: Session, job: TrainJob) -> None:
    """Raises ConflictError if the version exists: better before the training than after it."""
    reference = Reference(job.name, job.version)
    try:
        session.registry.resolve(reference)
    except NotFoundError:
        return
    raise ConflictError(
        f"{reference} exists already, and a published version never changes",
        hint=f"give --version {job.version.bump_minor()}, or concepts remove {reference}",
    )


def run_job(
    session: Session,
    job: TrainJob,
    *,
    workdir: Path | None = None,
    resume: bool = False,
    watch: WatchOptions | None = None,
) -> TrainResult:
    """Returns the finished concept of a job. Raises what ``conceptry.trainer.training.train`` raises."""
    from conceptry.base_locations import resolve_base

    location = resolve_base(job.base, session.registry.bases())
    with track(session.out, "loading the base") as meter:
        from conceptry.trainer.training import train as train_job

        return train_job(
            job,
            on_event=follow_training(meter, session.out),
            workdir=workdir,
            resume=resume,
            base=location,
            watch=watch,
        )


def _report_plan(session: Session, job: TrainJob) -> None:
    """Prints what the job will need; a job that does not fit is a failure, with what to change."""
    from conceptry.base_locations import resolve_base

    location = resolve_base(job.base, session.registry.bases())
    with track(session.out, "loading the base") as meter:
        from conceptry.trainer.training import plan as plan_job

        plan = plan_job(job, on_event=follow_training(meter, session.out), base=location)
    seconds = "unknown" if plan.seconds is None else f"about {format_seconds(plan.seconds)}"
    lines = [
        f"{job.method}: {plan.pictures} pictures, {plan.steps} steps, {plan.image_steps} samples, {seconds}",
        f"memory: {format_bytes(plan.peak_bytes)} at most, of which {format_bytes(plan.resident.base_bytes)} base and "
        f"{format_bytes(plan.sample_bytes)} for each of {plan.samples_at_once} samples at once",
    ]
    session.out.emit(describe_plan(plan), lines)


def _report(session: Session, job: TrainJob, result: TrainResult, published: Published) -> None:
    size_bytes = result.concept.manifest.size_bytes
    prompts = result.concept.manifest.usage.prompts
    prompt = prompts[0] if prompts else job.placeholder
    session.out.emit(
        {
            **to_json(published),
            "seconds": round(result.seconds, 3),
            "steps": result.steps,
            "size_bytes": size_bytes,
            "fixed_loss_before": result.fixed_loss_before,
            "fixed_loss_after": result.fixed_loss_after,
        },
        [
            f"published {published.reference} (sha256:{published.digest.short}…)",
            f"{job.method}, {result.steps} steps, {format_seconds(result.seconds)}, {format_bytes(size_bytes)}",
        ],
        quiet=[str(published.reference)],
    )
    words = ["concepts", "generate", "--with", str(published.reference.concept), "--prompt", prompt]
    base = [] if job.base == TOYBOX else ["--base", job.base]
    session.out.note(f"hint: {shlex.join([*words, *base, '-n', '4', '--out', 'pictures'])}")
