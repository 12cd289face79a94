"""The pages of the site that no file in docs/ holds: the reference, and the files at the top of the repository.

MkDocs calls the `on_…` functions. A reference page shows the names in `__all__` of the public packages and modules that
are defined in its rooms, room after room, so a new public name appears by itself, once. One that is defined in no room
of a page, or that has no docstring, or a docstring with a section that is none, ends the build. The docstring of data
is a string below the assignment.
"""

import argparse
import ast
import importlib
import inspect
import itertools
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

# Page → its title and the rooms, packages or modules, that its names are defined in.
PAGES = {
    "splitting/problems": ("Problems", ["splitting.problems"]),
    "splitting/operators": ("Operators", ["splitting.operators"]),
    "splitting/activations": ("Activations", ["splitting.prox"]),
    "splitting/solvers": ("Solvers", ["splitting.solvers", "splitting.steps"]),
    "splitting/solve": ("Solve and gradients", ["splitting.loop", "splitting.implicit", "splitting.errors"]),
    "splitting/checks": ("Checks", ["splitting.checks"]),
    "splitting/proofs": (
        "Proved numbers, kept values",
        ["splitting.verified", "splitting.norms", "splitting.context", "splitting.derived"],
    ),
    "mondeq/networks": ("Networks", ["mondeq.network", "mondeq.runs", "mondeq.original", "mondeq.errors"]),
    "mondeq/pieces": ("Pieces and norms", ["mondeq.pieces", "mondeq.norms"]),
    "mondeq/presets": ("Presets", ["mondeq.presets"]),
    "mondeq/parameterizations": ("Parameterizations", ["mondeq.parameterizations"]),
    "mondeq/certificates": ("Bounds and certificates", ["mondeq.bounds", "mondeq.certificates", "mondeq.attacks"]),
    "mondeq/weights": ("Moved and quantised weights", ["mondeq.weights", "mondeq.quantisation"]),
    "mondeq/training": ("Training and losses", ["mondeq.training", "mondeq.losses"]),
    "mondeq/registries": ("Registries and settings", ["mondeq.registry", "mondeq.settings", "mondeq.solving"]),
    "mondeq/data": ("Data", ["mondeq.data"]),
    "mondeq/testing": ("Testing", ["mondeq.testing"]),
}
# Where public names are; one that several of them have is shown under that of the first.
PUBLIC = (
    "splitting",
    "splitting.operators",
    "splitting.prox",
    "splitting.solvers",
    "mondeq",
    "mondeq.pieces",
    "mondeq.norms",
    "mondeq.presets",
    "mondeq.parameterizations",
    "mondeq.bounds",
    "mondeq.certificates",
    "mondeq.attacks",
    "mondeq.training",
    "mondeq.losses",
    "mondeq.settings",
    "mondeq.data",
    "mondeq.testing",
)
SECTIONS = {"Args", "Attributes", "Example", "Examples", "Note", "Raises", "Returns", "Warns", "Yields"}
COMMAND_LINE = "reference/mondeq/command_line.md"

# Files at the top of the repository → what they are on the site.
TOP = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "CITATION.cff": "CITATION.cff",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that this module makes."""
    for source, target in TOP.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    pages = {f"reference/{page}.md": text for page, text in reference().items()} | {COMMAND_LINE: command_line()}
    for target, text in pages.items():
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between docs/ and the top of the repository lead to the same pages on the site."""
    for source, target in TOP.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}")
        if page.file.src_uri in TOP.values():
            markdown = markdown.replace(f"]({source}", f"]({target}")
    return markdown.replace("](docs/", "](") if page.file.src_uri in TOP.values() else markdown


def reference() -> dict[str, str]:
    """Page → its text."""
    found = [(f"{package}.{name}", defined(package, name)) for package in PUBLIC for name in exports(package)]
    first = {place: public for public, place in reversed(found)}
    names = {public: place for public, place in found if first[place] == public}
    placed = {public: page_of(place) for public, place in names.items()}
    wrong = [f"`{public}`: `{names[public]}` is in no room of a page" for public, page in placed.items() if not page]
    wrong += [f"`{public}` has no docstring" for public in names if not documented(public)]
    wrong += [f"`{public}`: `{line}` opens no section" for public in names for line in no_sections(public)]
    if wrong:
        raise PluginError("; ".join(wrong))
    return {
        page: "\n".join(
            [
                f"# {title}\n",
                *(entry(public, place) for room in rooms for public, place in names.items() if lies_in(place, room)),
            ]
        )
        for page, (title, rooms) in PAGES.items()
    }


def exports(package: str) -> list[str]:
    return list(importlib.import_module(package).__all__)


def defined(package: str, name: str) -> str:
    """Where a public name comes from, as a dotted name: of data, the module that assigns it."""
    value = getattr(importlib.import_module(package), name)
    if inspect.ismodule(value):
        return value.__name__
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    body = ast.parse(inspect.getsource(importlib.import_module(package))).body
    imported = [(node.module, alias) for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    sources = [(module, alias.name) for module, alias in imported if name == (alias.asname or alias.name)]
    return defined(str(sources[0][0]), sources[0][1]) if sources else f"{package}.{name}"


def page_of(place: str) -> str | None:
    return next((page for page, (_, rooms) in PAGES.items() if any(lies_in(place, room) for room in rooms)), None)


def lies_in(place: str, room: str) -> bool:
    return place == room or place.startswith(f"{room}.")


def documented(public: str) -> bool:
    """Whether a class, function or module has a docstring of its own, or data a string below the assignment."""
    package, _, name = public.rpartition(".")
    value = getattr(importlib.import_module(package), name)
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        # dataclass makes one, `Name(fields)`, where there is none
        return not (value.__doc__ or f"{name}(").startswith(f"{name}(")
    place, _, own = defined(package, name).rpartition(".")
    return own in constants(inspect.getsource(importlib.import_module(place)))


def no_sections(public: str) -> list[str]:
    """Lines like `Argument:`, and `Args:` above a line that is not indented: what follows them would be plain text."""
    package, _, name = public.rpartition(".")
    value = getattr(importlib.import_module(package), name)
    members = vars(value).values() if inspect.isclass(value) else ()
    found = []
    for each in (value, *(getattr(member, "__func__", getattr(member, "fget", member)) for member in members)):
        lines = inspect.cleandoc(each.__doc__ or "").splitlines() if callable(each) else []
        for line, below in itertools.pairwise([*lines, ""]):
            if re.fullmatch(r"[A-Z][a-z]+:", line) and not (line[:-1] in SECTIONS and below.startswith("    ")):
                found.append(line)
    return found


def constants(text: str) -> set[str]:
    """The constants of a source file that a string below them documents."""
    body = ast.parse(text).body
    return {
        ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        for node, below in itertools.pairwise(body)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def entry(public: str, place: str) -> str:
    """The lines by which mkdocstrings shows the object defined at `place` under its public name."""
    short = public.rpartition(".")[2]
    return f"::: {place}\n    options:\n      heading: {public}\n      toc_label: {short}\n"


def command_line() -> str:
    """The help of `mondeq` and of its subcommands."""
    parser = mondeq_parser()
    parts = ["# Command line\n", help_of(parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parts += [f"## mondeq {name}\n\n{help_of(command)}" for name, command in action.choices.items()]
    return "\n".join(parts)


def help_of(parser: argparse.ArgumentParser) -> str:
    with mock.patch.dict(os.environ, COLUMNS="100", NO_COLOR="1"):
        return f"```text\n{parser.format_help().rstrip()}\n```\n"


def mondeq_parser() -> argparse.ArgumentParser:
    """The parser that `mondeq` would read its arguments with."""
    caught: list[argparse.ArgumentParser] = []

    def catch(parser: argparse.ArgumentParser, *_: Any) -> None:
        caught.append(parser)
        raise SystemExit

    with mock.patch.object(argparse.ArgumentParser, "parse_args", catch):
        importlib.import_module("mondeq.cli").main([])
    return caught[0]
