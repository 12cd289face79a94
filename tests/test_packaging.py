"""What is shipped: the wheel holds both packages whole and nothing else; every dependency is pinned."""

import ast
import graphlib
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
    assert "torch>=2.13" in required
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


# -- rooms and arrows ------------------------------------------------------------------------------------------------

RULES = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def stated_layers() -> list[str]:
    """The packages of `experiments → … → torch`, the lowest first."""
    (chain,) = re.findall(r"`(\w+(?: → \w+)+)`", RULES)
    return list(reversed(chain.split(" → ")))


def stated_rooms(package: str) -> list[str]:
    """The rooms of a package in the order of its list, as dotted names; the package's `__init__` is the package."""
    (listed,) = re.findall(rf"^- `{package}`: ((?:`[\w/]+`[ ·\n]*)+)", RULES, re.MULTILINE)
    rooms = [f"{package}.{name.replace('/', '.')}" for name in re.findall(r"`([\w/]+)`", listed)]
    return [room.removesuffix(".__init__") for room in rooms]


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports(text: str, importer: str) -> set[str]:
    """The modules that a source file of the name `importer` imports by any statement, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{importer}: an import with dots"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in members if is_module(name)}
            found |= modules | ({node.module} if members - modules else set())
    return found


def sources(package: str) -> dict[str, set[str]]:
    """What every module of a package imports."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {module_name(file): imports(file.read_text(encoding="utf-8"), module_name(file)) for file in files}


def room_of(module: str, rooms: list[str]) -> str | None:
    """The longest name among `rooms` that `module` is or lies in. Only the package itself lies in the package."""
    package = module.partition(".")[0]
    holding = [r for r in rooms if module == r or (r != package and module.startswith(f"{r}."))]
    return max(holding, key=len, default=None)


def wrong_arrows(modules: dict[str, set[str]], rooms: list[str]) -> list[str]:
    """Imports of a later room, and modules without a room."""
    place = {module: room_of(module, rooms) for module in modules}
    homeless = [f"{module} has no room" for module, room in place.items() if room is None]
    return homeless + [
        f"{module} → {name}"
        for module, names in modules.items()
        for name in sorted(names & modules.keys())
        if place[module] and place[name] and rooms.index(place[module]) < rooms.index(place[name])
    ]


def test_packages_import_only_what_is_below_them() -> None:
    layers = stated_layers()
    assert layers[0] == "torch"
    assert set(layers[1:]) == {*PACKAGES, "experiments"}
    for height, package in enumerate(layers[1:], start=1):
        found = {module: {name.partition(".")[0] for name in names} for module, names in sources(package).items()}
        assert set().union(*found.values()) >= set(layers[:height][-1:]), f"{package}: no imports were read"
        forbidden = {*layers[height + 1 :], "tests"}
        assert {module: wrong for module, names in found.items() if (wrong := names & forbidden)} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_only_what_is_before_them(package: str) -> None:
    modules, rooms = sources(package), stated_rooms(package)
    assert wrong_arrows(modules, rooms) == []
    assert set(rooms) == {room_of(module, rooms) for module in modules}, "a room without modules"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_make_no_circle(package: str) -> None:
    modules = sources(package)
    inner = {module: names & modules.keys() - {module} for module, names in modules.items()}
    assert sum(map(len, inner.values())) > len(modules)
    graphlib.TopologicalSorter(inner).prepare()


def test_a_wrong_arrow_is_seen_wherever_it_stands() -> None:
    """At the top, inside a function, for types alone, of a member, of a module, under another name."""
    rooms = ["splitting.errors", "splitting.operators.base", "splitting.scratch", "splitting.operators", "splitting"]
    for text in (
        "from splitting.scratch import recycled",
        "def f():\n    from splitting import scratch",
        "if TYPE_CHECKING:\n    import splitting.scratch as memory",
    ):
        read = {"splitting.operators.base": imports(text, "base"), "splitting.scratch": set()}
        assert wrong_arrows(read, rooms) == ["splitting.operators.base → splitting.scratch"]
        read = {"splitting.operators.dense": imports(text, "dense"), "splitting.scratch": set()}
        assert wrong_arrows(read, rooms) == []
    front = {"splitting.errors": imports("import splitting\nfrom splitting import solve", "errors"), "splitting": set()}
    assert wrong_arrows(front, rooms) == ["splitting.errors → splitting"]
    assert wrong_arrows({"splitting.new": set()}, rooms) == ["splitting.new has no room"]


def test_mondeq_uses_only_what_splitting_exports() -> None:
    import splitting

    exported = set(splitting.__all__)
    for path in (ROOT / "mondeq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "splitting":
                assert node.module == "splitting", f"{path} imports from {node.module}"
                assert {alias.name for alias in node.names} <= exported, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "splitting":
                assert node.attr in exported, f"{path} uses splitting.{node.attr}"
