"""What the commands of one run share: how to talk, what was agreed to, and the store."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from conceptry.cli.output import Output, has_terminal
from conceptry.errors import UsageError

if TYPE_CHECKING:
    from conceptry.names import RemoteName
    from conceptry.registry import Registry

F = TypeVar("F", bound=Callable[..., Any])

_OFFLINE: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_QUIET_LIBRARIES: Final = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(slots=True)
class Session:
    """One run of the command line. Options of any level write into it; commands read it."""

    out: Output = field(default_factory=Output)
    yes: bool = False
    _registry: Registry | None = None

    @property
    def registry(self) -> Registry:
        """The user's store, opened when it is first needed. Raises StoreError."""
        if self._registry is None:
            from conceptry.registry import Registry

            self._registry = Registry(project_remotes=read_project_remotes)
        return self._registry

    def forbid_network(self) -> None:
        """Tells every library of this run to stay off the network."""
        os.environ.update(dict.fromkeys(_OFFLINE, "1"))

    def quiet_libraries(self) -> None:
        """Keeps the remarks of other libraries from standing between ours, unless ``--verbose`` asks for them."""
        if self.out.verbose:
            import logging

            logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
            return
        import warnings

        for variable, value in _QUIET_LIBRARIES.items():
            os.environ.setdefault(variable, value)
        warnings.simplefilter("ignore")

    def confirm(self, question: str) -> None:
        """Goes on after a yes: given by ``--yes``, or by a person at a terminal.

        Raises:
            UsageError: if there is nobody to ask.
            click.Abort: if the answer is no.
        """
        if self.yes:
            return
        if not has_terminal(sys.stdin) or self.out.mode != "human":
            raise UsageError(f"{question} Nobody is here to answer", hint="add --yes to agree beforehand")
        click.confirm(question, abort=True, err=True)


def read_project_remotes() -> Mapping[RemoteName, str]:
    """Returns the remotes of the project around the working folder, none where there is no project."""
    from conceptry.registry.workspace import find_folder

    folder = find_folder(Path.cwd())
    if folder is None:
        return {}
    from conceptry.registry.project import read_project

    return read_project(folder).remotes


pass_session: Final = click.make_pass_decorator(Session, ensure=True)
