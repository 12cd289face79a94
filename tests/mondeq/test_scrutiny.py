"""A model that is not what it seems: certified as what model(x) computes or refused, saved as what it is or refused."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import mondeq
import splitting
from mondeq.attacks import accuracy_under_attack
from mondeq.bounds import Chain, MatrixInequality, Product, best_pairs, local_jacobian_norms
from mondeq.errors import RunError
from mondeq.formats import describe
from mondeq.network import exact_copy
from mondeq.norms import Norm
from mondeq.scrutiny import fingerprint
from mondeq.testing import activations, check_certificate, check_lipschitz, check_unique_equilibrium
from splitting import InvalidArgument, InvalidType
from splitting.errors import SplittingError
from tests.mondeq.zoo import KINDS, KINDS_IN_TURN, classifier, labels_of, pictures, same_weights

each_kind = pytest.mark.parametrize("kind", KINDS_IN_TURN)


class Doubled(splitting.ReLU):
    """2·relu, which is 2-Lipschitz."""

    def __call__(self, y: Tensor) -> Tensor:
        return 2 * y.relu()

    def derivative(self, y: Tensor) -> Tensor:
        return 2 * (y > 0).to(y.dtype)


class Late(splitting.Activation):
    """relu, and twice as steep where no usual grid looks."""

    def __call__(self, y: Tensor) -> Tensor:
        return y.relu() + (y - 30).relu()

    def derivative(self, y: Tensor) -> Tensor:
        return (y > 0).to(y.dtype) + (y > 30).to(y.dtype)


@dataclass(frozen=True)
class RogueProx(splitting.Tanh):
    """Another function where the solvers ask."""

    def proximal(self, v: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
        return 2 * super().proximal(v, alpha, out)


class Homogeneous(splitting.ReLU):
    """Inherits a promise that it does not keep."""

    def __call__(self, y: Tensor) -> Tensor:
        return y.tanh()

    def derivative(self, y: Tensor) -> Tensor:
        return 1 - y.tanh().square()

    point, proximal, derivative_at = splitting.Tanh.point, splitting.Tanh.proximal, splitting.Tanh.derivative_at


class OtherSteps(splitting.Tanh):
    """Another function where the solvers step."""

    def proximal_at(self, alpha: float) -> Any:
        return lambda v, out: 0 * v


class Mixing(splitting.Activation):
    """Not entry by entry."""

    def __call__(self, y: Tensor) -> Tensor:
        return y.reshape(-1, 5).relu().reshape(y.shape)

    def derivative(self, y: Tensor) -> Tensor:
        return (y > 0).to(y.dtype)


class Soft(splitting.Activation):
    """σ(y) = y/2 + tanh(y)/2: what a user may add."""

    def __call__(self, y: Tensor) -> Tensor:
        return (y + y.tanh()) / 2

    def derivative(self, y: Tensor) -> Tensor:
        return 1 - y.tanh().square() / 2


class Sharper(mondeq.Classifier):
    def __call__(self, images: Tensor) -> Tensor:
        return 10 * super().__call__(images)


class Loud(mondeq.Classifier):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(10 * images)


class Elsewhere(mondeq.Classifier):
    """Shows other pieces than it has."""

    @property
    def places(self) -> list[Any]:
        return super().places[1:]


class LoudHead(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * super().forward(x)


class LoudLayer(mondeq.EquilibriumLayer):
    def forward(self, x: Tensor, initial: Tensor | None = None) -> Tensor:
        return 10 * super().forward(x, initial)


class CalledLayer(mondeq.EquilibriumLayer):
    def __call__(self, x: Tensor) -> Tensor:
        return 10 * super().__call__(x)


class HelpedLayer(mondeq.EquilibriumLayer):
    """Leaves forward as it is, but not what that calls."""

    def _state(self, x: Tensor, initial: Tensor | None = None) -> Tensor:
        return 10 * super()._state(x, initial)


class Brighter(mondeq.Normalise):
    """Leaves forward as it is, but not what that calls."""

    def constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = super().constants(like)
        return mean, std / 10


class Named(mondeq.EquilibriumLayer):
    """Changes nothing of what is computed."""

    def extra_repr(self) -> str:
        return "mine"


class OwnPiece(mondeq.Piece):
    """A user's own, proofs and all: x ↦ −x."""

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> nn.Module:
        return cls()

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        return in_shape

    def forward(self, x: Tensor) -> Tensor:
        return -x

    def proofs(self, norm: Norm, in_shape: torch.Size) -> list[mondeq.Proof]:
        return [OwnProof(norm, in_shape)]


class OwnProof(mondeq.Proof):
    constant = 1.0

    def __init__(self, norm: Norm, out_shape: torch.Size) -> None:
        self.norm, self.out_shape = norm, out_shape

    def enclose(self, ball: mondeq.Ball) -> mondeq.Ball:
        return mondeq.Ball(-ball.centre, ball.radius, self.norm)


class Stretched(mondeq.Dense):
    """Inherits the bounds of what it is not."""

    def source(self, x: Tensor) -> Tensor:
        return 10 * super().source(x)


class StretchedInput(mondeq.parameterizations.DenseInput):
    def operator(self) -> splitting.DenseOperator:
        return splitting.DenseOperator(torch.eye(self.features, dtype=self.U.dtype))

    def source(self, x: Tensor) -> Tensor:
        return 10 * super().source(x)


class Skew(mondeq.parameterizations.DenseInput):
    """A user's own: A = I + G − Gᵀ."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__(in_features, features)
        self.G = nn.Parameter(torch.randn(features, features))

    def operator(self) -> splitting.DenseOperator:
        return splitting.DenseOperator(torch.eye(self.features, dtype=self.G.dtype) + self.G - self.G.mT)


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def subclassed(kind: type[mondeq.Classifier], model: mondeq.Network) -> mondeq.Network:
    config = mondeq.ModelConfig("dense", image_shape=(2, 2, 3), classes=3, mean=(0.4, 0.6), std=(0.5, 0.25), features=5)
    other = kind(config)
    other.load_state_dict(model.state_dict())
    return other


def as_layer(kind: type[mondeq.EquilibriumLayer], model: mondeq.Network) -> mondeq.Network:
    return replaced(model, layer=kind(model.layer.linear, tol=model.layer.tol))


def replaced(model: mondeq.Network, **attributes: Any) -> mondeq.Network:
    for path, value in attributes.items():
        *where, name = path.split("__")
        setattr(model.get_submodule(".".join(where)), name, value)
    return model


def scaled(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: 10 * function(*arguments)


def hooked(model: mondeq.Network, path: str, before: bool) -> mondeq.Network:
    module = model.get_submodule(path)
    if before:
        module.register_forward_pre_hook(lambda _, arguments: (10 * arguments[0],))
    else:
        module.register_forward_hook(lambda _, __, output: 10 * output)
    return model


# What a dense classifier can become without a weight being changed: logits ten times as large, and the like.
TAMPERED: dict[str, Callable[[mondeq.Network], Any]] = {
    "subclass with a call": lambda m: subclassed(Sharper, m),
    "subclass with a forward": lambda m: subclassed(Loud, m),
    "subclass with other places": lambda m: subclassed(Elsewhere, m),
    "class exchanged": lambda m: m.__setattr__("__class__", Sharper) or m,
    "layer of a subclass": lambda m: as_layer(LoudLayer, m),
    "layer with another call": lambda m: as_layer(CalledLayer, m),
    "layer with another state": lambda m: as_layer(HelpedLayer, m),
    "normalise with other constants": lambda m: replaced(m, normalise=Brighter((0.4, 0.6), (0.5, 0.25))),
    **{
        f"{'pre-' if before else ''}hook on {path or 'model'}": lambda m, p=path, b=before: hooked(m, p, b)  # type: ignore[misc]
        for path in ("", "layer", "normalise", "layer.linear", "head")
        for before in (False, True)
    },
    "layer._state shadowed": lambda m: replaced(m, layer___state=scaled(m.layer._state)),
    "layer.proofs shadowed": lambda m: replaced(m, layer__proofs=m.layer.proofs),
    "places shadowed": lambda m: vars(m).update(places=m.places) or m,
    "head.forward shadowed": lambda m: replaced(m, head__forward=scaled(m.head.forward)),
    "forward shadowed": lambda m: replaced(m, forward=scaled(m.forward)),
    "layer.forward shadowed": lambda m: replaced(m, layer__forward=scaled(m.layer.forward)),
    "linear.source shadowed": lambda m: replaced(m, layer__linear__source=scaled(m.layer.linear.source)),
    "linear.operator shadowed": lambda m: replaced(m, layer__linear__operator=m.layer.linear.operator),
    "normalise.constants shadowed": lambda m: replaced(m, normalise__constants=m.normalise.constants),
    "normalise of one channel": lambda m: replaced(m, normalise=mondeq.Normalise((0.0,), (0.01,))),
    "normalise missing": lambda m: replaced(m, normalise=None),
    "mean of one channel": lambda m: replaced(m, normalise___mean=(0.0,)),
    "mean that is none": lambda m: replaced(m, normalise___mean=(math.nan, 0.0)),
    "std of one channel": lambda m: replaced(m, normalise___std=(0.01,)),
    "std that is none": lambda m: replaced(m, normalise___std=(0.5, -0.25)),
    "head of another width": lambda m: replaced(m, head=nn.Linear(6, 3)),
    "head of another kind": lambda m: replaced(m, head=nn.Bilinear(5, 5, 3)),
    "head that says another width": lambda m: replaced(m, head__in_features=4),
    "head that says other classes": lambda m: replaced(m, head__out_features=4),
    "entries left out": lambda m: replaced(m, normalise=mondeq.Entries(1)),
    "images of another size": lambda m: replaced(m, in_shape=torch.Size((2, 2, 4))),
    "images of other channels": lambda m: replaced(m, in_shape=torch.Size((3, 2, 2))),
    "linear of a subclass": lambda m: replaced(m, layer__linear=Stretched(12, 5)),
    "linear with another source": lambda m: replaced(m, layer__linear=StretchedInput(12, 5)),
    "linear of another width": lambda m: replaced(m, layer__linear=Skew(12, 4)),
    "linear missing": lambda m: replaced(m, layer__linear=nn.Linear(12, 5)),
    "submodule added": lambda m: m.add_module("probe", nn.Linear(2, 2)) or m,
    "spectral norm": lambda m: parametrizations.spectral_norm(m.head) and m,
    "weight norm": lambda m: parametrizations.weight_norm(m.layer.linear, "U") and m,
    "spectral norm of old": lambda m: torch.nn.utils.spectral_norm(m.head) and m,
    "pruned": lambda m: prune.l1_unstructured(m.head, "weight", 2) and m,
    "2·relu": lambda m: replaced(m, layer__activation=Doubled()),
    "steep later": lambda m: replaced(m, layer__activation=Late()),
    "rogue prox": lambda m: replaced(m, layer__activation=RogueProx()),
    **{
        kind.__name__: lambda m, kind=kind: replaced(m, layer__activation=kind())  # type: ignore[misc]
        for kind in (Homogeneous, OtherSteps, Mixing)
    },
    "2·relu, scaled": lambda m: replaced(m, layer__activation=splitting.prox.Scaled(Doubled(), torch.ones(5))),
    "scaled by nothing": lambda m: replaced(
        m, layer__activation=splitting.prox.Scaled(splitting.Tanh(), 0 * torch.ones(5))
    ),
    "2·relu, masked": lambda m: replaced(m, layer__activation=splitting.Masked(Doubled(), torch.ones(5) > 0)),
    "in parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled": torch.compile,
    "without weights": lambda m: m.to("meta"),
    "no classifier": lambda m: m.layer.linear,
    "nothing": lambda m: None,
}


# What computes what it says, of which no constant is known.
UNPROVED: dict[str, Callable[[mondeq.Network], Any]] = {
    "class of the head exchanged": lambda m: m.head.__setattr__("__class__", LoudHead) or m,
    "head replaced": lambda m: replaced(m, head=nn.Sequential(m.head, Halved())),
    "piece without a constant": lambda m: replaced(m, more=Halved()),
    "layer wrapped": lambda m: replaced(m, layer=nn.Sequential(m.layer)),
    "layer of a cell": lambda m: mondeq.Network(
        {"flatten": nn.Flatten(), "layer": mondeq.Equilibrium(nn.Bilinear(3, 12, 3), (3,))}, m.in_shape
    ),
    "pixels that overlap": lambda m: mondeq.Network(
        [nn.AvgPool2d(2, stride=1), nn.Flatten(), nn.Linear(4, 3)], m.in_shape
    ),
    "convolution in groups": lambda m: mondeq.Network(
        [nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(12, 3)], m.in_shape
    ),
    "flattened in part": lambda m: mondeq.Network([nn.Flatten(2), nn.Flatten(), nn.Linear(12, 3)], m.in_shape),
}


@pytest.mark.parametrize("name", UNPROVED)
def test_a_piece_of_which_nothing_is_known_is_named(name: str, tmp_path: Path) -> None:
    """The network may be used and attacked; it is neither certified nor saved."""
    model = UNPROVED[name](classifier())
    assert model(pictures(model)).shape == (7, 3)
    with pytest.raises(InvalidArgument, match=r"flattens only a part|nothing can be certified: the piece `") as caught:
        mondeq.certify(model, pictures(model), labels_of(model))
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidArgument):
        mondeq.lipschitz_bounds(model)
    with pytest.raises(RunError, match="cannot save this model") as refused:
        mondeq.save(model, tmp_path / "a" / "b")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def entry_points(model: Any) -> list[Callable[[], Any]]:
    images, labels = pictures(classifier(), 3), labels_of(classifier(), 3)
    return [
        lambda: mondeq.certify(model, images, labels),
        lambda: mondeq.lipschitz_bounds(model),
        lambda: local_jacobian_norms(model, images),
        lambda: exact_copy(model),
        lambda: accuracy_under_attack(model, images, labels, [0.1], steps=1),
    ]


@pytest.mark.parametrize("name", TAMPERED)
def test_what_may_compute_something_else_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    pytest.importorskip("foolbox")
    model = TAMPERED[name](classifier())
    for call in entry_points(model):
        with pytest.raises(SplittingError) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError) as refused:
        mondeq.save(model, tmp_path / "a" / "b")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_hook_for_all_modules_is_refused() -> None:
    model = classifier()
    handle = nn.modules.module.register_module_forward_hook(lambda _, __, output: output)
    try:
        with pytest.raises(InvalidArgument, match="for all modules"):
            mondeq.lipschitz_bounds(model)
    finally:
        handle.remove()
    mondeq.lipschitz_bounds(model)


def test_scale_is_an_activation_as_long_as_it_is_at_most_one() -> None:
    model = classifier()
    d = torch.full((5,), 0.9)
    model.layer.activation = splitting.Scale(d)
    images, labels = pictures(model), labels_of(model)
    report = mondeq.certify(model, images, labels)
    assert check_certificate(model, images, labels, report) == len(images)
    d.fill_(1.9)
    with pytest.raises(InvalidArgument, match=r"does not lie in \[0, 1\]"):
        mondeq.certify(model, images, labels)


HARMLESS: dict[str, Callable[[mondeq.Network], Any]] = {
    "a name": lambda m: replaced(m, title="mine", layer__linear__note=[1, 2]),
    "a monitor": lambda m: replaced(m, layer__monitor=lambda role, solution: None),
    "solved otherwise": lambda m: replaced(m, layer__solver=splitting.ForwardBackward(), layer__tol=1e-3),
    "a backward hook": lambda m: m.register_full_backward_hook(lambda *_: None) and m,
    "another activation": lambda m: replaced(m, layer__activation=splitting.LeakyReLU(0.3)),
    "a user's activation": lambda m: replaced(m, layer__activation=Soft()),
    "a user's parameterization": lambda m: replaced(m, layer__linear=Skew(12, 5)),
    "training": lambda m: m.train(),
    "compiled in place": lambda m: m.compile() or m,
    "another m": lambda m: replaced(m, layer__linear___fixed_m=0.3),
    "normalise replaced": lambda m: replaced(m, normalise=nn.Identity()),
    "normalise of others": lambda m: replaced(m, normalise=mondeq.Normalise((0.0, 0.0), (0.01, 0.01))),
    "mean changed": lambda m: replaced(m, normalise___mean=(0.0, 0.0)),
    "std changed": lambda m: replaced(m, normalise___std=(0.01, 0.01)),
    "head without bias": lambda m: replaced(m, head=nn.Linear(5, 3, bias=False)),
    "head of others": lambda m: replaced(m, head=nn.Linear(5, 4)),
    "head deleted": lambda m: m.__delattr__("head") or m,
    "a head more": lambda m: replaced(m, more=nn.Linear(3, 4)),
    "a logit less": lambda m: replaced(m, more=mondeq.Entries(1)),
    "a piece before all": lambda m: mondeq.Network([nn.Identity(), *m.children()], m.in_shape).eval(),
    "sorted states": lambda m: mondeq.Network([m.normalise, m.layer, nn.ReLU(), m.head], m.in_shape).eval(),
    "two layers": lambda m: mondeq.Network(
        [m.normalise, m.layer, mondeq.EquilibriumLayer(mondeq.Dense(5, 5)), m.head], m.in_shape
    ).eval(),
    "a layer of a subclass": lambda m: as_layer(Named, m),
    "a user's piece": lambda m: replaced(m, more=OwnPiece()),
    "layer compiled in place": lambda m: m.layer.compile() or m,
    "half precision": lambda m: m.bfloat16(),
    "tied": lambda m: replaced(m, layer__linear__G=m.layer.linear.F),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_computes_the_same_is_certified_as_it_is(name: str) -> None:
    torch.manual_seed(1)
    model = HARMLESS[name](classifier(scale=2.0))
    images, labels = pictures(model), labels_of(model)
    report = mondeq.certify(model, images, labels)
    assert check_certificate(model, images, labels, report) >= 6
    if name not in ("half precision", "compiled in place", "layer compiled in place"):
        model.eval().double()
        for layer in model.solved():
            layer.tol = 1e-10
        with torch.no_grad():
            assert torch.equal(model(images.double()).argmax(1), report.prediction)


@settings(max_examples=12)
@given(
    kind=st.sampled_from(KINDS), mutation=st.sampled_from([*TAMPERED, *UNPROVED, *HARMLESS]), seed=st.integers(0, 99)
)
def test_whatever_was_done_to_a_model_its_certificates_hold(kind: str, mutation: str, seed: int) -> None:
    """Refused, or true of what model(x) computes: no prediction changes inside a radius, whatever was changed."""
    try:
        model = (TAMPERED | UNPROVED | HARMLESS)[mutation](classifier(kind, seed=seed, scale=2.0).double())
        images, labels = pictures(model, 3, dtype=torch.float64), labels_of(model, 3)
        report = mondeq.certify(model, images, labels)
    except (SplittingError, AttributeError, TypeError, RuntimeError):
        return
    model.eval()
    for layer in model.solved():
        layer.tol = 1e-10
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(4):
            step = torch.randn(images.shape, generator=generator, dtype=torch.float64)
            length = report.radius.clamp_max(10) * 0.99 / step.flatten(1).norm(dim=1)
            moved = model((images + length[:, None, None, None] * step).to(model.dtype)).argmax(1)
            assert torch.equal(moved[report.radius > 1e-4], report.prediction[report.radius > 1e-4])


def test_properties_go_through_the_same_door() -> None:
    linear, x = mondeq.Dense(3, 4), torch.randn(2, 3)
    for activation in (Doubled(), Late(), RogueProx()):
        for check in (
            lambda a=activation: check_lipschitz(linear, x, activation=a),
            lambda a=activation: check_unique_equilibrium(linear, a, x),
        ):
            with pytest.raises(InvalidArgument):
                check()
    check_lipschitz(linear, x, activation=Soft())
    with pytest.raises(InvalidType, match="derives from Dense"):
        check_lipschitz(Stretched(3, 4), x)


# -- whose a bound is ----------------------------------------------------------------------------------------------


@each_kind
def test_the_exact_copy_has_the_fingerprint_of_the_model(kind: str) -> None:
    """Which is of what is proved: of weights and pieces, not of how it is solved, watched or used."""
    model = classifier(kind)
    owner = fingerprint(exact_copy(model))
    assert owner == Chain.of(model).owner == fingerprint(exact_copy(exact_copy(model)))
    other = copy.deepcopy(model).train()
    other.layer.tol, other.layer.max_steps, other.layer.on_failure = 1e-2, 7, "return"
    other.layer.solver, other.layer.monitor = splitting.ForwardBackward(), lambda *_: None
    assert owner == fingerprint(exact_copy(other))
    assert owner != fingerprint(exact_copy(classifier(kind, seed=1)))


def test_tensors_of_an_activation_belong_to_the_fingerprint_by_value() -> None:
    model = classifier()
    model.layer.activation = splitting.Scale(torch.full((5,), 0.9))
    owner = fingerprint(model)
    assert owner == fingerprint(copy.deepcopy(model))
    assert fingerprint(exact_copy(model)) == fingerprint(exact_copy(model))
    model.layer.activation = splitting.Scale(torch.full((5,), 0.8))
    assert owner != fingerprint(model)


@settings(max_examples=25)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 1000), exponent=st.floats(-300, 300), data=st.data())
def test_bounds_of_other_weights_are_refused(kind: str, seed: int, exponent: float, data: st.DataObject) -> None:
    """Any change of any weight, by any factor or one last digit, makes bounds another network's."""
    model = classifier(kind, seed=seed).double()
    images, labels = pictures(model, 2, dtype=torch.float64), labels_of(model, 2)
    bounds = {"product": Product().bound(Chain.of(model))}
    mondeq.certify(model, images, labels, bounds=bounds)
    weight = data.draw(st.sampled_from(list(model.parameters()))).detach().flatten()
    position = data.draw(st.integers(0, len(weight) - 1))
    before = weight[position].clone()
    if data.draw(st.booleans()):
        weight[position] *= 10.0**exponent
    else:
        weight[position] = torch.nextafter(before, before.new_tensor(math.inf))
    if weight[position] != before:
        # Of weights that overflow float64 nothing can be proved, whatever the bounds are.
        with pytest.raises(InvalidArgument, match=r"other weights or another model|holds NaN or inf or overflows"):
            mondeq.certify(model, images, labels, bounds=bounds)
    weight[position] = before
    mondeq.certify(model, images, labels, bounds=bounds)


def test_bounds_are_refused_unless_they_are_as_they_were_proved() -> None:
    model, other = classifier(), classifier(seed=1)
    images, labels = pictures(model), labels_of(model)
    own, foreign = mondeq.lipschitz_bounds(model, images), mondeq.lipschitz_bounds(other, images)
    product = own["product"]
    assert isinstance(product.pairs, Tensor)
    tempting = torch.full_like(product.pairs, 1e-3)
    wrong: dict[str, tuple[Any, str]] = {
        "another model's": (foreign, "proved for other weights or another model"),
        "mixed": (own | {"one": foreign["product"]}, "'one', proved for other weights"),
        "estimate as certified": (
            own | {"x": mondeq.Bound(1e-3, "certified", "", "", tempting)},
            "'x', which is not as it was proved",
        ),
        "promoted estimate": (
            {"x": replace(own["local Jacobian"], kind="certified", pairs=tempting)},
            "not as it was proved",
        ),
        "smaller pairs": ({"x": replace(product, pairs=tempting)}, "not as it was proved"),
        "no bounds": ({"x": 1.0}, "what lipschitz_bounds"),
        "no dictionary": (product, "what lipschitz_bounds"),
    }
    for bounds, message in wrong.values():
        with pytest.raises((InvalidArgument, InvalidType), match=message):
            mondeq.certify(model, images, labels, bounds=bounds)
    with pytest.raises(InvalidArgument, match="other weights"):
        best_pairs({"a": own["product"], "b": foreign["product"]})
    product.pairs.mul_(0.1)
    with pytest.raises(InvalidArgument, match="not as it was proved"):
        mondeq.certify(model, images, labels, bounds=own)


@pytest.mark.parametrize("change", [{"std": (0.05, 0.025)}, {"image_shape": (2, 3, 2)}])
def test_the_same_weights_in_another_model_are_another_model(change: dict[str, Any]) -> None:
    model = classifier()
    other = classifier(seed=1, **change)
    other.load_state_dict(model.state_dict())
    with pytest.raises(InvalidArgument, match="other weights or another model"):
        mondeq.certify(other, pictures(other), labels_of(other), bounds=mondeq.lipschitz_bounds(model))


@pytest.mark.parametrize("name", ["gamma", "epsilon", "_fixed_m"])
def test_numbers_beside_the_weights_belong_to_the_fingerprint(name: str) -> None:
    model = classifier("dense" if name == "_fixed_m" else "lipschitz")
    bounds = mondeq.lipschitz_bounds(model)
    setattr(model.layer.linear, name, 3.0)
    with pytest.raises(InvalidArgument, match="other weights"):
        mondeq.certify(model, pictures(model), labels_of(model), bounds=bounds)


def test_a_bound_is_proved_in_float64_or_not_at_all() -> None:
    """Of the float64 network that its chain is of, whatever network that was made of."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = classifier().to(dtype)
        chain = Chain.of(model)
        assert {p.dtype for p in chain.exact.parameters()} == {torch.float64}
        for method in (Product(), MatrixInequality()):
            bound = method.bound(chain)
            assert bound.pairs is not None
            assert bound.pairs.dtype == torch.float64
            assert bound.owner == chain.owner == fingerprint(exact_copy(model))


# -- saved as it is ------------------------------------------------------------------------------------------------


def same_network(first: mondeq.Network, second: mondeq.Network) -> bool:
    images = pictures(first, dtype=first.dtype)
    settings_of = [
        (m.layer.activation, m.layer.solver, m.layer.tol, m.layer.backward_tol, m.layer.max_steps)
        for m in (first, second)
    ]
    with torch.no_grad():
        for model in (first, second):
            model.layer.on_failure = "return"
        same = torch.equal(first.eval()(images), second.eval()(images))
    return same and settings_of[0] == settings_of[1] and same_weights(first.state_dict(), second.state_dict())


def test_what_was_set_on_the_layer_is_saved(tmp_path: Path) -> None:
    model = classifier()
    model.layer.activation, model.layer.tol = splitting.Tanh(), 1e-7
    model.layer.solver, model.layer.max_steps = splitting.Anderson(splitting.PeacemanRachford()), 77
    mondeq.save(model, tmp_path)
    loaded = mondeq.load(tmp_path)
    assert same_network(model, loaded)
    described = describe(loaded)
    assert described == describe(model)
    (layer,) = [row for row in described["pieces"] if row["name"] == "layer"]
    assert (layer["activation"], layer["solver"], layer["tol"], layer["max_steps"]) == ("tanh", "anderson", 1e-7, 77)


@pytest.mark.parametrize("name", ["another m", *(name for name in HARMLESS if "normalise" in name), "mean changed"])
def test_a_piece_in_place_of_another_is_saved_as_it_is(name: str, tmp_path: Path) -> None:
    model = HARMLESS[name](classifier())
    mondeq.save(model, tmp_path)
    loaded = mondeq.load(tmp_path)
    assert same_network(model, loaded)
    assert describe(loaded) == describe(model)


@pytest.mark.parametrize(
    "activation", [splitting.LeakyReLU(0.3), splitting.SoftThreshold(0.25), splitting.Box(-1.5, 0.5), splitting.ReLU()]
)
def test_parameters_of_activations_are_saved(activation: splitting.Activation, tmp_path: Path) -> None:
    model = replaced(classifier(), layer__activation=activation)
    mondeq.save(model, tmp_path)
    assert mondeq.load(tmp_path).layer.activation == activation


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    activation=activations() | st.sampled_from([Soft(), splitting.Box(0, math.inf), Doubled()]),
    solver=st.sampled_from(
        [*(kind() for _, kind in mondeq.SOLVERS.items()), splitting.PeacemanRachford(0.3), splitting.Anderson(memory=2)]
    ),
    tol=st.floats(1e-12, 1e-1) | st.sampled_from([math.nan, -1.0, True]),
    backward_tol=st.floats(1e-12, 1e-1),
    max_steps=st.integers(0, 30),
    double=st.booleans(),
    data=st.data(),
)
def test_save_and_load_give_the_same_network_or_save_refuses(
    kind: str,
    activation: splitting.Activation,
    solver: splitting.Solver,
    tol: float,
    backward_tol: float,
    max_steps: int,
    double: bool,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = classifier(kind)
    if double:
        model = model.double()
    layer = model.layer
    layer.activation, layer.solver, layer.tol, layer.max_steps = activation, solver, tol, max_steps
    if data.draw(st.booleans()):
        layer.backward_tol = backward_tol
    folder = tmp_path_factory.mktemp("run") / "run"
    with contextlib.suppress(RunError):
        mondeq.save(model, folder)
    assert not folder.exists() or same_network(model, mondeq.load(folder))


def tied(model: mondeq.Network) -> mondeq.Network:
    model.layer.linear.G = model.layer.linear.F
    return model


def views(model: mondeq.Network) -> mondeq.Network:
    flat = torch.randn(30)
    model.layer.linear.F, model.layer.linear.G = nn.Parameter(flat[:25].view(5, 5)), nn.Parameter(flat[5:].view(5, 5))
    return model


UNSAVABLE: dict[str, tuple[Callable[[mondeq.Network], Any], str]] = {
    "half": (lambda m: m.half(), "float16"),
    "bfloat16": (lambda m: m.bfloat16(), "bfloat16"),
    "mixed": (lambda m: replaced(m, head=m.head.double()), "float64"),
    "NaN": (lambda m: m.head.weight.data.fill_(math.nan) is None or m, "NaN or inf in head.weight"),
    "inf": (lambda m: m.layer.linear.U.data[0].fill_(math.inf) is None or m, "NaN or inf in layer.linear.U"),
    "tied": (tied, "share memory"),
    "overlapping": (views, "share memory"),
    "meta": (lambda m: m.to("meta"), "on meta"),
    "sparse": (lambda m: replaced(m, head__weight=nn.Parameter(m.head.weight.detach().to_sparse())), "sparse"),
    "a width that it has not": (lambda m: replaced(m, layer__linear__features=7), "linear"),
    "a name that it has not": (lambda m: replaced(m, class_names=("a",)), "class_names"),
    "the shape of others": (lambda m: replaced(m, in_shape=(2, 3, 3)), "12 entries"),
    "m of another kind": (lambda m: replaced(m, layer__linear___fixed_m="3"), "`m` must be a finite number"),
    "own step": (lambda m: replaced(m, layer__solver=splitting.PeacemanRachford(0.5)), "solver"),
    "own activation": (lambda m: replaced(m, layer__activation=Soft()), "activation"),
    "unbounded box": (lambda m: replaced(m, layer__activation=splitting.Box(0, math.inf)), "finite"),
    "zero steps": (lambda m: replaced(m, layer__max_steps=0), "max_steps"),
    "own parameterization": (lambda m: replaced(m, layer__linear=Skew(12, 5)), "Skew"),
    "compiled": (torch.compile, "_orig_mod"),
    "parallel": (nn.DataParallel, r"\.module"),
    "averaged": (torch.optim.swa_utils.AveragedModel, r"\.module"),
}


@pytest.mark.parametrize("name", UNSAVABLE)
def test_save_refuses_what_load_would_and_leaves_the_old_run(name: str, tmp_path: Path) -> None:
    good = classifier(seed=3)
    mondeq.save(good, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    change, message = UNSAVABLE[name]
    model = change(classifier())
    for folder in (tmp_path / "run", tmp_path / "new" / "run"):
        with pytest.raises(RunError, match=message) as caught:
            mondeq.save(model, folder)
        assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_weights_side_by_side_in_one_block_of_memory_are_saved(tmp_path: Path) -> None:
    model = classifier()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    nn.utils.vector_to_parameters(flat, model.parameters())
    mondeq.save(model, tmp_path)
    assert same_network(model, mondeq.load(tmp_path))


@pytest.mark.parametrize("extra", [{"note": object()}, {"format": 2}, {"note": {1, 2}}])
def test_entries_that_json_has_not_are_refused_before_anything_is_made(extra: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError):
        mondeq.save(classifier(), tmp_path / "run", **extra)
    assert not list(tmp_path.iterdir())


@each_kind
def test_an_average_of_weights_is_saved_as_what_it_is(kind: str, tmp_path: Path) -> None:
    model = classifier(kind)
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    mondeq.save(averaged.module, tmp_path)
    assert same_network(averaged.module, mondeq.load(tmp_path))
    images = pictures(model)
    assert mondeq.certify(averaged.module, images, labels_of(model)).radius.shape == (len(images),)


# -- whatever modes and defaults the caller is in ------------------------------------------------------------------


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(("kind", "dtype"), zip(KINDS, 2 * (torch.float64, torch.bfloat16), strict=True))
def test_nothing_lands_on_the_default_device(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pytest.importorskip("foolbox")
    model = classifier(kind)
    images, labels = pictures(model), labels_of(model)
    expected = mondeq.certify(model, images, labels)
    norms = local_jacobian_norms(model, images)
    attacked = accuracy_under_attack(model, images, labels, [0.1], steps=2)
    torch.set_default_dtype(dtype)
    with default_device("meta"):
        report = mondeq.certify(model, images, labels)
        assert torch.equal(report.radius, expected.radius)
        assert {b.value for b in report.bounds.values()} == {b.value for b in expected.bounds.values()}
        assert torch.equal(local_jacobian_norms(model, images), norms)
        assert accuracy_under_attack(model, images, labels, [0.1], steps=2) == attacked
        assert check_certificate(model, images, labels, report, samples=2, ascent=2) == len(images)
        check_lipschitz(model, ascent=2)
        check_unique_equilibrium(model.layer.linear, splitting.Tanh(), images.flatten(1), max_steps=20)
        mondeq.save(model, tmp_path)
        loaded = mondeq.load(tmp_path)
    assert same_network(model, loaded)


@pytest.mark.parametrize("kind", ["dense", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_inside_inference_mode(kind: str, tmp_path: Path) -> None:
    """Also for weights and images that were made in it, inside and after."""
    pytest.importorskip("foolbox")
    model = classifier(kind)
    mondeq.save(model, tmp_path)
    images, labels = pictures(model), labels_of(model)
    expected, norms = mondeq.certify(model, images, labels), local_jacobian_norms(model, images)
    with torch.inference_mode():
        made = classifier(kind)
        made_images = images.clone()
        mondeq.save(made, tmp_path / "made")
        loaded = mondeq.load(tmp_path)

    def check(model: mondeq.Network, images: Tensor) -> None:
        report = mondeq.certify(model, images, labels)
        assert torch.equal(report.radius, expected.radius)
        torch.testing.assert_close(local_jacobian_norms(model, images.double()), norms)
        assert same_network(model, mondeq.load(tmp_path / "made"))

    for candidate in (model, made, loaded):
        with torch.inference_mode():
            check(candidate, made_images)
        check(candidate, made_images)
        accuracy_under_attack(candidate, made_images, labels, [0.1], steps=1)
        check_certificate(candidate, made_images, labels, expected, samples=1, ascent=1)
        check_lipschitz(candidate, made_images.double(), ascent=1)
    with torch.inference_mode():
        accuracy_under_attack(made, made_images, labels, [0.1], steps=1)
        check_certificate(made, made_images, labels, expected, samples=1, ascent=1)
        check_lipschitz(made, made_images.double(), ascent=1)
    loaded(images).sum().backward()  # a loaded model can be trained


@pytest.mark.parametrize("kind", [np.float32, np.array, lambda value: torch.tensor(value)])
def test_bounds_belong_to_settings_of_every_kind(kind: Callable[[float], Any]) -> None:
    model = classifier("lipschitz")
    model.layer.linear.gamma = kind(0.05)
    bounds = mondeq.lipschitz_bounds(model)
    model.layer.linear.gamma = kind(50.0)
    with pytest.raises(InvalidArgument, match="proved for other weights or another model"):
        mondeq.certify(model, pictures(model), labels_of(model), bounds=bounds)


def test_parameters_of_known_activations_are_looked_at_again() -> None:
    model = classifier("dense")
    model.layer.activation = splitting.LeakyReLU(0.5)
    object.__setattr__(model.layer.activation, "slope", 20.0)
    with pytest.raises(InvalidArgument, match="`slope` must lie in"):
        mondeq.certify(model, pictures(model), labels_of(model))
