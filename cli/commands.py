"""The commands, one frozen row each. Reading this table loads none of them; ``concepts --help`` is made of it alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CommandRow:
    """One command: where its code lies, and its line in ``concepts --help`` (the same as in its own help)."""

    name: str
    target: str
    """``module:function`` inside this room."""

    summary: str
    section: str


_MAKE: Final = "Make"
_KEEP: Final = "Keep"
_SHARE: Final = "Share"
_PROJECT: Final = "Work in a project"
_USE: Final = "Use"
_SET_UP: Final = "Set up"

COMMANDS: Final[tuple[CommandRow, ...]] = (
    CommandRow(
        "demo", "demo:demo", "Teach, share, compose and draw a few concepts, and show it on one sheet.", _MAKE
    ),
    CommandRow("train", "train:train", "Teach a base a concept from a folder of pictures.", _MAKE),
    CommandRow("import", "imports:import_file", "Publish a file that another program made.", _MAKE),
    CommandRow("adopt", "adopt:adopt", "List the models of a folder as concepts, in place.", _MAKE),
    CommandRow("publish", "publish:publish", "Publish a folder with a concept.json into the store.", _MAKE),
    CommandRow(
        "list",
        "browse:list_concepts",
        "List the concepts in the store, and the files that were adopted.",
        _KEEP,
    ),
    CommandRow("search", "browse:search", "Find concepts by words.", _KEEP),
    CommandRow("show", "show:show", "Show all that is known of one concept.", _KEEP),
    CommandRow("pack", "pack:pack", "Make a smaller version of a full fine-tune.", _KEEP),
    CommandRow(
        "unpack", "pack:unpack", "Make a version of a packed fine-tune that holds its values again.", _KEEP
    ),
    CommandRow("diff", "diff:diff", "Show what differs between two versions.", _KEEP),
    CommandRow("identify", "identify:identify", "Say what a file is, for which base, and why.", _KEEP),
    CommandRow("remove", "remove:remove", "Take a version out of the store.", _KEEP),
    CommandRow("verify", "verify:verify", "Read every byte again and name what is wrong.", _KEEP),
    CommandRow("tag", "tag:tag", "Let a tag point to a version from now on.", _KEEP),
    CommandRow("yank", "yank:yank", "Say that nobody should choose a version anew.", _KEEP),
    CommandRow("doctor", "doctor:doctor", "Find what is wrong with the store, and put it right.", _KEEP),
    CommandRow("gc", "gc:gc", "Put away what nothing in the store needs.", _KEEP),
    CommandRow("push", "transfer:push", "Copy a version to a remote.", _SHARE),
    CommandRow("pull", "transfer:pull", "Copy versions from remotes.", _SHARE),
    CommandRow("remote", "remote:remote", "Add, list and remove remotes.", _SHARE),
    CommandRow("init", "init:init", "Make a project of this folder.", _PROJECT),
    CommandRow("add", "add:add", "Require a concept, or a file that nobody published.", _PROJECT),
    CommandRow("drop", "add:drop", "Require a concept no longer.", _PROJECT),
    CommandRow("lock", "lock:lock", "Write exactly what the project requires.", _PROJECT),
    CommandRow("sync", "sync:sync", "Bring all that the project requires into the store.", _PROJECT),
    CommandRow("tree", "tree:tree", "Show what the project requires, and what that requires.", _PROJECT),
    CommandRow("why", "tree:why", "Say why a concept is part of the project.", _PROJECT),
    CommandRow(
        "outdated", "audit:outdated", "Show which locked concepts are not the newest, or not sound.", _PROJECT
    ),
    CommandRow(
        "audit", "audit:audit", "List what should be looked at before the concepts are used.", _PROJECT
    ),
    CommandRow("bundle", "bundle:bundle", "Write the project and all it requires into one file.", _PROJECT),
    CommandRow("view", "view:view", "Put concepts into the folders that another program reads.", _USE),
    CommandRow("export", "export:export", "Write a concept as the files that another program reads.", _USE),
    CommandRow("generate", "generate:generate", "Draw pictures with concepts attached to a base.", _USE),
    CommandRow("reproduce", "reproduce:reproduce", "Draw pictures again from what they carry.", _USE),
    CommandRow("check", "check:check", "Say whether concepts fit a base and one another.", _USE),
    CommandRow(
        "compose",
        "compose:compose",
        "Write or check a composition file, or make a concept or weights of the composition.",
        _USE,
    ),
    CommandRow("merge", "merge:merge", "Make one new concept of several.", _USE),
    CommandRow("eval", "evaluate:evaluate", "Measure how well a concept does what it should.", _USE),
    CommandRow(
        "report",
        "report:report",
        "Write one HTML page: pictures, scores, curves and tables, with nothing from elsewhere in it.",
        _USE,
    ),
    CommandRow(
        "augment",
        "augment:augment",
        "Measure whether generated pictures help a classifier that has few of a rare class.",
        _USE,
    ),
    CommandRow("uses", "uses:uses", "Measure what a concept is good for beside new pictures of it.", _USE),
    CommandRow("advise", "advise:advise", "Say which training method the benchmark's numbers favour.", _MAKE),
    CommandRow(
        "benchmark-methods",
        "benchmark:benchmark_methods",
        "Compare every training method on the same subjects with the same budget.",
        _MAKE,
    ),
    CommandRow("base", "base:base", "Add, list, show and remove base models.", _SET_UP),
    CommandRow(
        "toybox", "toybox:toybox", "Render the bundled world; find and measure its base model.", _SET_UP
    ),
    CommandRow(
        "completion", "completion:completion", "Print what makes a shell complete names and options.", _SET_UP
    ),
)
ROW_BY_NAME: Final[dict[str, CommandRow]] = {row.name: row for row in COMMANDS}
