"""The pages a user reads: their Python runs, their commands parse, their links lead somewhere, their names exist.

The Python blocks of one page share a namespace, top to bottom, in an empty folder. A line number in a traceback is
that of the page.
"""

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from mondeq.cli import bound, certify, info, train

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *(page for page in [ROOT / "README.md"] if page.exists())])
LANGUAGES = {"python", "console", "", "sh", "text"}

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


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `mondeq …` line in a block that is not Python; comments and line ends `\\` are undone."""
    text = "\n".join(text for language, _, text in blocks(page) if language != "python").replace("\\\n", " ")
    lines = [re.sub(r"^\$ ", "", line.strip()) for line in text.splitlines()]
    lines = [re.sub(r"^torchrun .*? -m mondeq ", "mondeq ", line) for line in lines]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("mondeq ")]


@each_page
def test_commands_parse(page: Path) -> None:
    parser = argparse.ArgumentParser(prog="mondeq", exit_on_error=False)
    subcommands = parser.add_subparsers(required=True)
    for module in (train, certify, bound, info):
        module.add_parser(subcommands)
    for command in commands(page):
        parser.parse_args(command)


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
