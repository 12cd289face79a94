"""A new thing of every kind, defined here and nowhere else: known to command line, files and certificates at once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import mondeq
import splitting
from mondeq.bounds import Chain
from mondeq.certificates import Prepared
from mondeq.cli import main
from mondeq.data import Loader, Split
from mondeq.losses import Progress
from mondeq.pieces import Logits
from mondeq.settings import POSITIVE, Whole
from mondeq.testing import check_certificate, check_lipschitz

# -- a parameterization: A = mI + vvᵀ + S − Sᵀ with one vector v ----------------------------------------------------


@dataclass(frozen=True)
class RankOneSettings(mondeq.Settings):
    features: int = mondeq.setting(Whole(1))
    m: float = mondeq.setting(POSITIVE, 0.5)


@mondeq.PARAMETERIZATIONS.enrol("rank-one")
class RankOne(mondeq.DenseInput):
    """A = mI + vvᵀ + S − Sᵀ."""

    Settings = RankOneSettings

    def __init__(self, in_features: int, features: int, m: float) -> None:
        super().__init__(in_features, features)
        self.m = m
        self.v = nn.Parameter(torch.randn(features) / features**0.5)
        self.S = nn.Parameter(torch.randn(features, features) / features)

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> "RankOne":
        return cls(in_shape.numel(), settings.features, settings.m)

    def settings(self) -> RankOneSettings:
        return RankOneSettings(self.features, self.m)

    def operator(self) -> splitting.DenseOperator:
        eye = torch.eye(self.features, dtype=self.v.dtype, device=self.v.device)
        return splitting.DenseOperator(self.m * eye + self.v[:, None] * self.v + self.S - self.S.mT)


# -- a piece: x ↦ x/κ ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShrinkSettings(mondeq.Settings):
    factor: float = mondeq.setting(POSITIVE, 2.0)


class ShrinkProof(mondeq.Proof):
    def __init__(self, piece: "Shrink", norm: mondeq.Norm, shape: torch.Size) -> None:
        self.piece, self.norm, self.out_shape = piece, norm, shape
        self.constant = (1 + 1e-15) / piece.factor

    def enclose(self, ball: mondeq.Ball) -> mondeq.Ball:
        rounding = 1e-15 * self.norm.of(ball.centre)
        return mondeq.Ball(self.piece(ball.centre), (ball.radius / self.piece.factor + rounding) * 1.001, self.norm)


@mondeq.PIECES.enrol("shrink")
class Shrink(mondeq.Piece):
    """x/κ."""

    Settings = ShrinkSettings

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> "Shrink":
        return cls(settings.factor)

    def settings(self) -> ShrinkSettings:
        return ShrinkSettings(self.factor)

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        return in_shape

    def forward(self, x: Tensor) -> Tensor:
        return x / self.factor

    def proofs(self, norm: mondeq.Norm, in_shape: torch.Size) -> Sequence[mondeq.Proof]:
        return [ShrinkProof(self, norm, in_shape)]


# -- an activation, a solver -----------------------------------------------------------------------------------------


@mondeq.ACTIVATIONS.enrol("half-tanh")
@dataclass(frozen=True)
class HalfTanh(splitting.Activation):
    """σ(y) = share·y + (1 − share)·tanh(y)."""

    share: float = 0.5

    def __call__(self, y: Tensor) -> Tensor:
        return self.share * y + (1 - self.share) * y.tanh()

    def derivative(self, y: Tensor) -> Tensor:
        return 1 - (1 - self.share) * y.tanh().square()


@mondeq.SOLVERS.enrol("plain-forward-backward")
@dataclass(frozen=True)
class Plain(splitting.Solver):
    """Forward–backward splitting with the step m/L²."""

    def bind(self, problem: splitting.Problem) -> "PlainIteration":
        assert isinstance(problem, splitting.Inclusion)
        return PlainIteration(problem)


class PlainIteration(splitting.solvers.Iteration):
    def __init__(self, problem: splitting.Inclusion) -> None:
        self.problem, A = problem, problem.operator
        self.alpha = A.strong_monotonicity / A.lipschitz**2
        self.rate = A.lipschitz + 1 / self.alpha

    def init(self, guess: Tensor | None) -> Tensor:
        return torch.zeros_like(self.problem.source) if guess is None else guess

    def step(self, carry: Tensor) -> splitting.solvers.State:
        A, c = self.problem.operator, self.problem.source
        z = self.problem.prox.proximal(carry - self.alpha * (A.apply(carry) - c), self.alpha)
        return splitting.solvers.State(z, z, self.rate * A.norm(z - carry))


# -- a bound, a certificate, a loss, a data set ----------------------------------------------------------------------


@mondeq.BOUNDS.enrol("frobenius")
class Frobenius(mondeq.BoundMethod):
    """The product bound with ‖·‖_F of the last matrix for all pairs."""

    def unsuited(self, chain: Chain) -> str | None:
        return None if chain.stages[-1].rows() is not None else "the last piece is not linear"

    def bound(self, chain: Chain) -> mondeq.Bound:
        *trunk, last = chain.stages
        rows = last.rows()
        assert rows is not None
        value = float(rows.norm()) * (1 + 1e-12) * chain.constant(trunk)
        pairs = torch.full((len(rows), len(rows)), 2**0.5 * value * (1 + 1e-12), dtype=torch.float64)
        return mondeq.Bound(value, "certified", "frobenius", "none", pairs.fill_diagonal_(0)).sealed(chain)


@mondeq.CERTIFICATES.enrol("largest gap")
class LargestGap(mondeq.Certificate):
    """(gap − slack)/(the largest constant of all gaps)."""

    def unsuited(self, chain: Chain) -> None:
        return None

    def prepare(self, chain: Chain, bounds: Mapping[str, mondeq.Bound]) -> Prepared:
        return LargestGapPrepared(max(float(b.pairs.max()) for b in bounds.values() if b.pairs is not None))


class LargestGapPrepared(Prepared):
    def __init__(self, constant: float) -> None:
        self.constant = constant

    def radius(self, images: Tensor, logits: Logits) -> Tensor:
        chosen = logits.value.argmax(1, keepdim=True)
        gap = logits.value.gather(1, chosen) - logits.value - logits.slack(chosen[:, 0])
        return gap.scatter(1, chosen, torch.inf).amin(1) / self.constant * (1 - 1e-12)


@dataclass(frozen=True)
class HingeSettings(mondeq.Settings):
    hinge: float = mondeq.setting(POSITIVE, 1.0, help="gap that is asked for")


@mondeq.LOSSES.enrol("hinge")
class Hinge(mondeq.Loss):
    """How far gaps are from `hinge` after the adversary's move."""

    Settings = HingeSettings

    def __call__(self, logits: Tensor, labels: Tensor, constants: Tensor, progress: Progress) -> Tensor:
        moved = logits + progress.radius * constants[labels]
        return functional.multi_margin_loss(moved, labels, margin=self.settings.hinge)


@mondeq.DATASETS.enrol("stripes")
class Stripes(Loader):
    """Which of three rows of a 4×4 picture is the brightest."""

    @staticmethod
    def load(root: Path, *, download: bool) -> mondeq.Dataset:
        generator = torch.Generator().manual_seed(0)
        splits = []
        for count in (200, 40):
            images = torch.randint(120, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
            labels = torch.randint(3, (count,), generator=generator)
            images[torch.arange(count), 0, labels] += 120
            splits.append(Split(images, labels))
        return mondeq.Dataset("stripes", *splits, ("top", "middle", "bottom"))


# Other tests go over all that is enrolled, and this is none of theirs.
OWN: list[tuple[mondeq.Registry[Any], str]] = [
    (mondeq.PARAMETERIZATIONS, "rank-one"),
    (mondeq.PIECES, "shrink"),
    (mondeq.ACTIVATIONS, "half-tanh"),
    (mondeq.SOLVERS, "plain-forward-backward"),
    (mondeq.BOUNDS, "frobenius"),
    (mondeq.CERTIFICATES, "largest gap"),
    (mondeq.LOSSES, "hinge"),
    (mondeq.DATASETS, "stripes"),
]
WITHDRAWN = [(registry, name, registry.withdraw(name)) for registry, name in OWN]


@pytest.fixture(scope="module", autouse=True)
def _enrolled() -> Iterator[None]:
    for registry, name, cls in WITHDRAWN:
        registry.enrol(name)(cls)
    yield
    for registry, name in OWN:
        registry.withdraw(name)


LAYER: dict[str, Any] = {
    "piece": "equilibrium",
    "parameterization": {"kind": "rank-one", "features": 6, "m": 2.0},
    "activation": "half-tanh",
    "activation_parameters": [0.25],
    "solver": "plain-forward-backward",
    "tol": 1e-2,
    "max_steps": 2000,
}
PIECES = [
    {"piece": "normalise", "mean": [0.3], "std": [0.5]},
    {"name": "first", **LAYER},
    {"piece": "shrink", "factor": 0.5},
    {"name": "second", **LAYER},
    {"piece": "linear", "features": 3},
]


@pytest.fixture(scope="module")
def run(_enrolled: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    (folder / "net.json").write_text(json.dumps({"pieces": PIECES}))
    command = ["train", "--data", "stripes", "--model", str(folder / "net.json"), "--loss", "hinge", "--hinge", "2"]
    command += ["--radius", "0.05", "--epochs", "3", "--batch-size", "20", "--lr", "0.03", "--out", str(folder / "run")]
    assert main(command) == 0
    return folder / "run"


def test_it_learns_and_the_folder_says_of_what_it_is_made(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test_accuracy"] > 0.8
    assert metrics["certified_accuracy"]["0.1"] > 0
    assert {"product", "frobenius"} <= metrics["lipschitz"].keys()
    assert metrics["certificates"].keys() == {"gaps", "largest gap"}
    config = json.loads((run / "config.json").read_text())
    assert [piece["piece"] for piece in config["model"]["pieces"]] == [piece["piece"] for piece in PIECES]
    assert config["training"]["loss_settings"] == {"hinge": 2.0}
    assert config["model"]["class_names"] == ["top", "middle", "bottom"]


def test_loaded_it_computes_the_same_and_keeps_every_setting(run: Path, tmp_path: Path) -> None:
    model = mondeq.load(run)
    assert isinstance(model.first.linear, RankOne)
    assert model.first.activation == HalfTanh(0.25)
    assert model.second.solver == Plain()
    mondeq.save(model, tmp_path)
    images = Stripes.load(tmp_path, download=False).test.images.float() / 255
    assert torch.equal(mondeq.load(tmp_path)(images), model(images))


def test_the_command_line_certifies_bounds_and_shows_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", str(run)]) == 0
    assert main(["bound", str(run), "--images", "5"]) == 0
    assert main(["bound", str(run), "--norm", "linf", "--images", "0"]) == 0
    assert main(["info", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "frobenius" in shown
    assert "rank-one" in shown


def test_what_is_certified_holds(run: Path) -> None:
    model = mondeq.load(run)
    split = Stripes.load(run, download=False).test
    images, labels = split.images[:12].float() / 255, split.labels[:12]
    report = mondeq.certify(model, images, labels)
    assert set(report.methods) == {"gaps", "largest gap"}
    assert check_certificate(model, images, labels, report) > 6
    assert 0 < check_lipschitz(model, images) <= 1


def test_a_run_of_them_is_resumed(run: Path, tmp_path: Path) -> None:
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert main(["train", "--resume", "--out", str(run), "--loss", "margin"]) == 1


def test_a_wrong_setting_is_told_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [PIECES[0], {**LAYER, "parameterization": {"kind": "rank-one", "features": 0}}]
    (tmp_path / "net.json").write_text(json.dumps({"pieces": wrong}))
    command = ["train", "--data", "stripes", "--model", str(tmp_path / "net.json"), "--out", str(tmp_path / "run")]
    assert main(command) == 1
    assert main([*command[:-1], str(tmp_path / "other"), "--hinge", "2"]) == 1
    (tmp_path / "two.json").write_text(
        json.dumps({"pieces": [{"piece": "flatten"}, {"piece": "linear", "features": 2}]})
    )
    for model in ("two.json", "none.json"):
        assert main([*command[:4], str(tmp_path / model), "--out", str(tmp_path / "third")]) == 1
    first, second, third, fourth = capsys.readouterr().err.splitlines()
    assert "give 2 logits, and the data have 3 classes" in third
    assert "none.json is no file; `--model` takes one of" in fourth
    assert "the piece `1`: `features` must be an integer ≥ 1" in first
    assert "`hinge` is a setting of the hinge loss, not of margin" in second
