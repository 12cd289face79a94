"""What a user reads: pages and docstrings.

Of the pages, their Python runs, their commands parse, their links lead somewhere, their names exist. Every public name
has a docstring, and those of the rooms that are listed here have an entry for every argument.

The Python blocks of one page share a namespace, top to bottom, in an empty folder. A line number in a traceback is
that of the page.
"""

import argparse
import ast
import dataclasses
import enum
import functools
import importlib
import inspect
import itertools
import json
import pkgutil
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, MethodType, ModuleType

import pytest

from mondeq.formats import build

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
LANGUAGES = {"json", "python", "console", "", "sh", "text"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path) -> Iterator[tuple[str, int, str]]:
    """(language, number of the line above the first, text) of every fenced block."""
    language, first, lines = None, 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```") and language is None:
            language, first, lines = line.removeprefix("```").strip(), number, []
        elif line == "```":
            yield language, first, "\n".join(lines)
            language = None
        else:
            lines.append(line)
    assert language is None, f"{page.name}: the block that opens in line {first} is not closed"


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What `#…` may follow the name of a page: its headings as the usual renderers spell them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Silent failures must not pass for examples: a block that shows one says on_failure="return".
@pytest.mark.filterwarnings("error::splitting.ConvergenceWarning")
@each_page
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "HOME"):  # where caches are on Linux and on macOS
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.delenv("MONDEQ_DATA", raising=False)
    namespace: dict[str, object] = {"__name__": page.stem}
    for language, line, text in blocks(page):
        if language == "python":
            exec(compile("\n" * line + text, str(page), "exec"), namespace)


@each_page
def test_blocks_are_of_a_known_kind(page: Path) -> None:
    """A misspelt language would silently take a block out of these tests."""
    assert {language for language, _, _ in blocks(page)} <= LANGUAGES


@each_page
def test_lists_of_pieces_make_networks(page: Path) -> None:
    """Of the digits, which `mondeq train --model FILE.json` can be tried on."""
    for language, _, text in blocks(page):
        if language == "json" and "pieces" in (described := json.loads(text)):
            network = build({"in_shape": [1, 8, 8], **described})
            assert network.classes == 10


# What a page calls: `mondeq …`, by torchrun too, and `python -m experiments.…`. The first group is the module to run.
PROGRAM = re.compile(r"(?:torchrun .*?-m |python -m )?(mondeq|experiments(?:\.\w+)+)(?=\s|$)")


class _Caught(BaseException):
    """What a program would parse its arguments with."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


@functools.cache
def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of `python -m module`, which is run up to where it reads its arguments."""

    def catch(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Caught(parser)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        patch.setattr(sys, "argv", [module])
        warnings.simplefilter("ignore", RuntimeWarning)  # another test may have imported the module
        with pytest.raises(_Caught) as caught:
            runpy.run_module(module, run_name="__main__")
    return caught.value.parser


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(module, arguments) of every line that calls one; comments and line ends `\\` are undone."""
    lines = [line.strip().removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines()]
    called = [(PROGRAM.match(line), line) for line in lines]
    return [(match[1], shlex.split(line[match.end() :], comments=True)) for match, line in called if match]


def test_commands_are_found() -> None:
    """Of the kinds that pages have, and not the import of a module."""
    text = "$ mondeq info a  # why\nimport mondeq\ntorchrun --nproc-per-node 4 -m mondeq info \\\n  b\n"
    text += "python -m experiments.benchmarks.dense --smoke\nmondeq.load(1)\nmondeq-like"
    expected = [("mondeq", ["info", "a"]), ("mondeq", ["info", "b"])]
    assert commands(text) == [*expected, ("experiments.benchmarks.dense", ["--smoke"])]


@each_page
def test_commands_parse(page: Path) -> None:
    """A wrong one ends in SystemExit, with argparse's reason above it."""
    for language, _, text in blocks(page):
        if language != "python":
            for module, arguments in commands(text):
                parser_of(module).parse_args(arguments)


def test_pages_show_commands() -> None:
    text = "\n".join(text for page in PAGES for language, _, text in blocks(page) if language != "python")
    called = {arguments[0] if module == "mondeq" else module for module, arguments in commands(text)}
    assert {"train", "certify", "bound", "info", "experiments.mnist", "experiments.svhn"} <= called


def mentions(text: str) -> Iterator[tuple[str, argparse.ArgumentParser, list[str]]]:
    """Calls with part of their arguments, as in `mondeq train --data NAME …`: (call, parser, the options named)."""
    for span in re.findall(r"`([^`]+)`", text):
        match = PROGRAM.match(span)
        if match is None:
            continue
        parser, words = parser_of(match[1]), span[match.end() :].split()
        choices = subcommands(parser)
        if choices and words and not words[0].startswith("-"):
            parser = choices[words[0]]
        yield span, parser, re.findall(r"(?<![\w-])--[\w-]+", span[match.end() :])


@each_page
def test_options_in_prose_exist(page: Path) -> None:
    for span, parser, options in mentions(prose(page)):
        assert set(options) <= parser._option_string_actions.keys(), span


@each_page
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = "\n".join(text for language, _, text in blocks(page) if language != "python")
    assert {*re.findall(r"^make (\w+)", shown, re.MULTILINE), *re.findall(r"`make (\w+)", prose(page))} <= targets


EXPERIMENTS = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in (ROOT / "experiments").rglob("*.py")
    if '__name__ == "__main__"' in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("module", EXPERIMENTS)
def test_programs_say_how_they_are_called(module: str) -> None:
    """In the first lines of their file, by their name and with options that they have."""
    documentation = importlib.import_module(module).__doc__ or ""
    named = list(mentions(documentation))
    assert any(span.startswith(f"python -m {module}") for span, _, _ in named)
    for span, parser, options in named:
        assert set(options) <= parser._option_string_actions.keys(), span


def test_examples_of_help_parse() -> None:
    """The example that every subcommand of `mondeq` ends its help with."""
    parser = parser_of("mondeq")
    assert {"train", "certify", "bound", "report", "info", "import-checkpoint"} <= subcommands(parser).keys()
    for name, command in {"": parser, **subcommands(parser)}.items():
        examples = re.findall(r"(?<=example: )mondeq .+", command.epilog or "")
        assert examples, f"no example for {name}"
        for module, arguments in commands("\n".join(examples)):
            assert not name or arguments[0] == name
            parser_of(module).parse_args(arguments)


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@each_page
def test_names_in_code_exist(page: Path) -> None:
    """`splitting.…` and `mondeq.…` in backticks are names of the packages."""
    missing = []
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        for name in re.findall(r"(?<![\w./\[])(?:splitting|mondeq)(?:\.[A-Za-z_]\w*)+", span):
            if not _resolves(name):
                missing.append(name)
    assert not missing


def _resolves(name: str) -> bool:
    module, *attributes = name.split(".")
    found = importlib.import_module(module)
    for depth, attribute in enumerate(attributes, start=1):
        if not hasattr(found, attribute):
            try:
                importlib.import_module(".".join([module, *attributes[:depth]]))
            except ImportError:
                return False
        found = getattr(found, attribute)
    return True


def test_the_index_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w.-]+\.md)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked


def test_every_cited_preprint_is_in_the_references() -> None:
    sources = [*(ROOT / "splitting").rglob("*.py"), *(ROOT / "mondeq").rglob("*.py")]
    cited = {number for file in sources for number in re.findall(r"arXiv[ :](\d{4}\.\d{5})", file.read_text("utf-8"))}
    listed = (DOCS / "references.md").read_text(encoding="utf-8")
    assert cited
    assert {number for number in cited if number not in listed} == set()


# -- docstrings ------------------------------------------------------------------------------------------------------

PUBLIC = (
    "splitting",
    "splitting.operators",
    "splitting.prox",
    "splitting.solvers",
    "mondeq",
    "mondeq.attacks",
    "mondeq.bounds",
    "mondeq.certificates",
    "mondeq.data",
    "mondeq.losses",
    "mondeq.norms",
    "mondeq.parameterizations",
    "mondeq.pieces",
    "mondeq.presets",
    "mondeq.settings",
    "mondeq.testing",
    "mondeq.training",
)

# The rooms whose docstrings have an entry for every argument. A package stands for all its modules.
EXPLAINED = (
    "splitting",
    "mondeq",
    "experiments.attacked",
    "experiments.cifar10",
    "experiments.deep_equilibrium",
    "experiments.mnist",
    "experiments.recipes",
    "experiments.svhn",
)


def modules(room: str) -> list[ModuleType]:
    """The module or package of that name, and all that is in it but what runs when it is imported."""
    top = importlib.import_module(room)
    inside = pkgutil.walk_packages(getattr(top, "__path__", []), f"{room}.")
    return [top, *(importlib.import_module(each.name) for each in inside if not each.name.endswith(".__main__"))]


Definition = type | FunctionType | MethodType


def public_definitions(module: ModuleType) -> dict[str, Definition]:
    """The public classes and functions that a module defines, and the public methods of these classes."""
    found = {}
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            found[name] = value
        if inspect.isclass(value):
            members = {each: getattr(value, each) for each in vars(value) if not each.startswith("_")}
            # A function that is the default of a field is no method, and has another name.
            own = {each: member for each, member in members.items() if getattr(member, "__name__", "") == each}
            routines = inspect.isfunction, inspect.ismethod
            found |= {f"{name}.{each}": member for each, member in own.items() if any(is_(member) for is_ in routines)}
    return found


def arguments_of(value: Definition) -> set[str]:
    """The names of what it is called with, `*args` with its star; of a class if it has a constructor of its own.

    Fields that a dataclass inherits from one are explained there.
    """
    if inspect.isclass(value) and (issubclass(value, enum.Enum) or not vars(value).keys() & {"__init__", "__new__"}):
        return set()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(value).parameters.values()
    inherited = {field.name for base in dataclasses_above(value) for field in dataclasses.fields(base)}
    own = set(vars(value).get("__annotations__", {})) if inspect.isclass(value) else set()
    return {stars.get(p.kind, "") + p.name for p in parameters} - {"self", "cls"} - (inherited - own)


def dataclasses_above(value: Definition) -> list[type]:
    """The dataclasses that a dataclass is made from."""
    if not inspect.isclass(value) or not dataclasses.is_dataclass(value):
        return []
    return [base for base in value.__mro__[1:] if dataclasses.is_dataclass(base)]


def documentation(value: object) -> str:
    """The docstring; of a method without one, that of the method it overrides; of a class, with its constructor's."""
    if not inspect.isclass(value):
        return inspect.getdoc(value) or ""
    own = inspect.cleandoc(value.__doc__ or "")
    if own.startswith(f"{value.__name__}("):  # made by `dataclass` where there is none
        return ""
    constructor = vars(value).get("__init__")
    return f"{own}\n\n{inspect.cleandoc(constructor.__doc__ or '')}" if own and constructor else own


def explained(docstring: str) -> set[str]:
    """The names that have an entry in the sections `Args:` and `Attributes:`."""
    sections = re.findall(r"^(?:Args|Attributes):\n((?:(?: {4}.*)?\n)+)", docstring + "\n", re.MULTILINE)
    return {
        name for section in sections for name in re.findall(r"^ {4}(\*{0,2}\w+)(?: \(.+\))?:", section, re.MULTILINE)
    }


def assigned_in(module: ModuleType, name: str) -> ModuleType:
    """The module in which a name is given its value: that one, or one that it is imported from."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return assigned_in(importlib.import_module(str(node.module)), alias.name)
    return module


def has_docstring(module: ModuleType, name: str) -> bool:
    """Of classes, functions and modules one of their own; of data a string below the assignment."""
    value = getattr(module, name)
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        return bool(documentation(value))
    return name in constants_with_docstrings(assigned_in(module, name))


def constants_with_docstrings(module: ModuleType) -> set[str]:
    """The constants of a module that a string stands below."""
    body = ast.parse(inspect.getsource(module)).body
    return {
        ast.unparse(getattr(node, "target", None) or node.targets[0])
        for node, below in itertools.pairwise(body)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_has_a_docstring(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__
    assert [name for name in module.__all__ if not has_docstring(module, name)] == []


def test_docstrings_of_data_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the assignment, also where others import the name, and not that of the type."""
    texts = {
        "data_first": 'A = 1\n"""One."""\nB: int = 2\n"""Two."""\nC = dict()\n# Three.\n',
        "data_second": "from data_first import A, B as D, C\n",
    }
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    first, second = map(importlib.import_module, texts)
    assert [has_docstring(first, name) for name in "ABC"] == [True, True, False]
    assert [has_docstring(second, name) for name in "AC"] == [True, False]
    assert assigned_in(second, "D") is first


@pytest.mark.parametrize("room", EXPLAINED)
def test_docstrings_explain_every_argument(room: str) -> None:
    missing = {}
    for module in modules(room):
        for name, value in public_definitions(module).items():
            text = documentation(value)
            unexplained = sorted(arguments_of(value) - explained(text))
            if not text or unexplained:
                missing[f"{module.__name__}.{name}"] = unexplained or "no docstring"
    assert missing == {}


def test_a_missing_argument_is_seen() -> None:
    def documented(x: int, *rest: int, way: str = "", **more: int) -> None:
        """It does.

        Args:
            x: A number,
                and another line: of it.
            *rest: More.

            way (str): How.

        Returns:
            more: Nothing.
        """

    assert arguments_of(documented) == {"x", "*rest", "way", "**more"}
    assert explained(documentation(documented)) == {"x", "*rest", "way"}


SECTIONS = {"Args", "Attributes", "Example", "Examples", "Note", "Raises", "Returns", "Warns", "Yields"}


@pytest.mark.parametrize("package", ["splitting", "mondeq", "experiments"])
def test_sections_of_docstrings_are_sections(package: str) -> None:
    """A misspelt one, or one that is not indented, would be plain text on the site."""
    wrong = []
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                lines = (ast.get_docstring(node) or "").splitlines()
                for line, below in itertools.pairwise([*lines, ""]):
                    opens = re.fullmatch(r"([A-Z][a-z]+):", line)
                    if opens and not (opens[1] in SECTIONS and below.startswith("    ")):
                        wrong.append(f"{file.relative_to(ROOT)}: {node.name}: {line}")
    assert wrong == []
