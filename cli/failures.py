"""From an exception to one sentence, its hint and its exit code."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import click

from conceptry.cli.output import Output
from conceptry.errors import ConceptryError, InterruptedByUserError, MissingExtraError, StoreError, UsageError

INTERRUPTED: Final = InterruptedByUserError.exit_code

# What the extra `torch` installs, by the name that is imported.
_TORCH_EXTRA: Final = frozenset(
    {"torch", "diffusers", "transformers", "peft", "accelerate", "jaxtyping", "PIL"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a run ended: what is said, and with which exit code."""

    message: str
    hint: str | None = None
    where: str | None = None
    code: str = ConceptryError.code
    exit_code: int = ConceptryError.exit_code
    is_bug: bool = False

    def report(self, out: Output, error: BaseException) -> None:
        """Says it; the traceback of a bug follows with ``--verbose``."""
        if self.is_bug and out.verbose:
            import traceback

            click.echo("".join(traceback.format_exception(error)), err=True)
        text = f"{self.where}: {self.message}" if self.where and out.mode != "json" else self.message
        fields = {"where": self.where, "code": self.code, "exit_code": self.exit_code}
        out.fail(text, hint=self.hint, fields=fields)


def explain(error: BaseException, command: str = "concepts") -> Failure:
    """Returns what to say about ``error``, which ended ``command``."""
    for kind, describe in _ROWS:
        if isinstance(error, kind):
            failure = describe(error, command)
            if failure is not None:
                return failure
    return _describe_bug(error)


def _describe_ours(error: Any, command: str) -> Failure | None:
    return Failure(
        message=error.message, hint=error.hint, where=error.where, code=error.code, exit_code=error.exit_code
    )


def _describe_usage(error: Any, command: str) -> Failure | None:
    near = getattr(error, "possibilities", None)
    path = error.ctx.command_path if getattr(error, "ctx", None) else command
    hint = f"did you mean {near[0]}?" if near else f"{path} --help shows what it takes"
    message = error.message if isinstance(error, click.NoSuchOption) else error.format_message()
    return _from_error(UsageError(_lower_first(message.rstrip(".")), hint=hint))


def _describe_interrupt(error: Any, command: str) -> Failure | None:
    hint = "nothing is half done; the same command can be run again"
    return _from_error(InterruptedByUserError("interrupted", hint=hint))


def _describe_missing_module(error: Any, command: str) -> Failure | None:
    module = (error.name or "").partition(".")[0]
    if module not in _TORCH_EXTRA:
        return None
    message = f"{command} needs {module}, which is not installed"
    return _from_error(MissingExtraError(message, hint="pip install 'conceptry[torch]'"))


def _describe_memory(error: Any, command: str) -> Failure | None:
    hint = "close other programs, or ask for less: --set batch_size=1, fewer pictures, --device cpu"
    return _from_error(StoreError("this machine has not enough memory for that", hint=hint))


_OS_HINTS: Final = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some space and run the same command again",
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may read and write there",
    errno.EROFS: "the disk is read-only: name a place that can be written",
    errno.EMFILE: "too many files are open at once: ulimit -n shows the limit",
    errno.ENOTDIR: "a part of that path is a file",
    errno.EISDIR: "that is a folder, name a file",
    errno.EEXIST: "a file of that name is in the way",
}


def _describe_os_error(error: Any, command: str) -> Failure | None:
    if error.errno is None:
        return None
    reason = os.strerror(error.errno).lower()
    place = f"{error.filename!r}: " if error.filename else ""
    return _from_error(StoreError(f"{place}{reason}", hint=_OS_HINTS.get(error.errno)))


def _describe_bug(error: BaseException) -> Failure:
    return Failure(
        message=f"unexpected {type(error).__name__}: {error}".rstrip(": "),
        hint="this is a fault of conceptry: please report it with what the same command prints with --verbose",
        code="bug",
        is_bug=True,
    )


def _from_error(error: ConceptryError) -> Failure:
    return Failure(message=error.message, hint=error.hint, code=type(error).code, exit_code=error.exit_code)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


_ROWS: Final[tuple[tuple[type[BaseException], Callable[[Any, str], Failure | None]], ...]] = (
    (ConceptryError, _describe_ours),
    (click.ClickException, _describe_usage),
    (click.Abort, _describe_interrupt),
    (KeyboardInterrupt, _describe_interrupt),
    (ModuleNotFoundError, _describe_missing_module),
    (MemoryError, _describe_memory),
    (OSError, _describe_os_error),
)
