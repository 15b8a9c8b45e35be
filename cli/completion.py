"""``concepts completion``: what a shell reads once to complete names and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.session import Session, pass_session
from conceptry.errors import UsageError


@click.command(
    "completion",
    cls=ConceptsCommand,
    examples=(
        "concepts completion bash > ~/.local/share/bash-completion/completions/concepts",
        "concepts completion zsh > ~/.zfunc/_concepts",
        "concepts completion fish > ~/.config/fish/completions/concepts.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_session
def completion(session: Session, /, shell: str) -> None:
    """Print what makes a shell complete names and options.

    Commands, options and the concepts in the store are completed.
    """
    from conceptry.cli.main import concepts

    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"no completion is known for {shell!r}")
    script = found(concepts, {}, "concepts", "_CONCEPTS_COMPLETE").source()
    session.out.emit({"shell": shell, "script": script}, script.splitlines(), quiet=script.splitlines())
