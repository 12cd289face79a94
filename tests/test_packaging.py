"""What is shipped: the wheel holds both packages whole and nothing else; every dependency is pinned."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("mondeq", "splitting")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from a copy of the checkout (building in place would leave files in it)."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "tests", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = out.glob("*.whl")
    return file


def metadata_file(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (m for m in archive.namelist() if m.endswith(f".dist-info/{name}"))
        return archive.read(member).decode()


def test_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {m for m in archive.namelist() if ".dist-info/" not in m}
    sources = {p.relative_to(ROOT).as_posix() for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    assert shipped == sources | {f"{name}/py.typed" for name in PACKAGES}


def test_wheel_metadata(wheel: Path) -> None:
    metadata = Parser().parsestr(metadata_file(wheel, "METADATA"))
    assert (metadata["Name"], metadata["Version"]) == ("mondeq", PROJECT["version"])
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    required = metadata.get_all("Requires-Dist")
    assert "torch>=2.6" in required
    assert not any(Requirement(r).url for r in required)
    assert "mondeq = mondeq.cli:main" in metadata_file(wheel, "entry_points.txt")


def test_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = "import mondeq, splitting, mondeq.cli; print(mondeq.__file__); print(splitting.__file__)"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [str(tmp_path / name / "__init__.py") for name in PACKAGES]


def direct_requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return [r for r in map(Requirement, lines) if r.name != PROJECT["name"]]


def pins() -> dict[str, str]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)( ; .+)?", line)
            assert match, f"not an exact version: {line!r}"
            found[canonicalize_name(match[1])] = match[2]
    return found


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_every_dependency_has_a_lower_bound_and_a_pin_that_meets_it(requirement: Requirement) -> None:
    assert [s.operator for s in requirement.specifier] == [">="]
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_torch_is_pinned_without_local_suffix() -> None:
    assert pins()["torch"] == "2.13.0"


def test_everything_the_dependencies_need_is_pinned() -> None:
    """Walks what is installed here. A need that is exact by itself (torch's CUDA parts) needs no pin."""
    pinned = pins()
    todo = [(canonicalize_name(r.name), frozenset(r.extras)) for r in direct_requirements()]
    seen = set()
    unpinned = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # the environment of this run lacks an extra
        for need in map(Requirement, needs):
            environments = ({**default_environment(), "extra": extra} for extra in {"", *extras})
            if need.marker is None or any(need.marker.evaluate(environment) for environment in environments):
                child = canonicalize_name(need.name)
                todo.append((child, frozenset(need.extras)))
                if child not in pinned and not any(s.operator == "==" for s in need.specifier):
                    unpinned.add(f"{child} (for {name})")
    assert len(seen) > len(PROJECT["dependencies"])
    assert not unpinned


def test_one_version_everywhere() -> None:
    version = PROJECT["version"]
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text().splitlines()
    (latest, *_) = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest == version


def imported_names(file: Path) -> set[str]:
    """Top-level names of the absolute imports of a source file."""
    nodes = list(ast.walk(ast.parse(file.read_text(), str(file))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    source = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.partition(".")[0] for name in plain | source if name}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("splitting", {"mondeq", "experiments", "tests"}), ("mondeq", {"experiments", "tests"})],
)
def test_imports_point_one_way(package: str, forbidden: set[str]) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert any("torch" in imported_names(file) for file in files)
    assert {f.name: wrong for f in files if (wrong := imported_names(f) & forbidden)} == {}
