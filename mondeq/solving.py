"""What solves an equilibrium: activations and solvers by name, and what makes an activation one that is certified."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import splitting
from mondeq.errors import ConfigError
from mondeq.modes import proving
from mondeq.registry import Registry
from mondeq.settings import POSITIVE, Choice, Optional, Real, Settings, Several, Whole, setting
from splitting import InvalidArgument, SplittingError

ACTIVATIONS: Registry[splitting.Activation] = Registry("activation")
"""The activations by the names that saved networks and the command line know them by."""
SOLVERS: Registry[splitting.Solver] = Registry("solver")
"""The solvers by the names that saved networks and the command line know them by, each with its own defaults."""

# Nondecreasing and 1-Lipschitz for every parameter that they accept.
_PROVED_ACTIVATIONS: dict[str, type[splitting.Activation]] = {
    "relu": splitting.ReLU,
    "leaky-relu": splitting.LeakyReLU,
    "tanh": splitting.Tanh,
    "sigmoid": splitting.Sigmoid,
    "softplus": splitting.Softplus,
    "soft-threshold": splitting.SoftThreshold,
    "box": splitting.Box,
    "identity": splitting.Identity,
}
for _name, _activation in _PROVED_ACTIVATIONS.items():
    ACTIVATIONS.enrol(_name)(_activation)
SOLVERS.enrol("peaceman-rachford")(splitting.PeacemanRachford)
SOLVERS.enrol("douglas-rachford")(splitting.DouglasRachford)
SOLVERS.enrol("forward-backward")(splitting.ForwardBackward)
SOLVERS.enrol("forward-backward-forward")(splitting.ForwardBackwardForward)
SOLVERS.enrol("anderson")(splitting.Anderson)
SOLVERS.enrol("broyden")(splitting.Broyden)


@dataclass(frozen=True)
class SolveSettings(Settings):
    """How an equilibrium is solved.

    Args:
        solver: A name in SOLVERS, with that solver's own defaults.
        tol: The relative residual at which a solve stops.
        max_steps: Steps after which a solve gives up.
        backward_tol: That of the backward solve; None for that of the forward solve.

    Raises:
        ConfigError: A value breaks the rule of its field.
    """

    solver: str = setting(Choice(SOLVERS), "peaceman-rachford")
    tol: float = setting(POSITIVE, 1e-4, help="relative residual at which a solve stops")
    max_steps: int = setting(Whole(1), 300, help="solver steps after which a solve gives up, with a warning")
    backward_tol: float | None = setting(Optional(POSITIVE), None)


@dataclass(frozen=True)
class ActivationSettings(Settings):
    """An activation by name.

    Args:
        activation: A name in ACTIVATIONS.
        activation_parameters: Its parameters in its own order, none for its defaults.

    Raises:
        ConfigError: There is no such activation, or they are not its parameters.
    """

    activation: str = setting(Choice(ACTIVATIONS), "relu", help="the activation of the equilibrium")
    activation_parameters: tuple[float, ...] = setting(
        Several(Real("a finite number", lambda _: True)), (), help="parameters of the activation, in its own order"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.make_activation()

    def make_activation(self) -> splitting.Activation:
        """The activation.

        Returns:
            A new one.

        Raises:
            ConfigError: The parameters are not its own.
        """
        kind: Any = ACTIVATIONS[self.activation]
        try:
            activation: splitting.Activation = kind(*self.activation_parameters)
        except (SplittingError, TypeError) as error:
            raise ConfigError(
                f"`activation_parameters` {self.activation_parameters} do not fit {kind.__name__}: {error}"
            ) from None
        return activation


@dataclass(frozen=True)
class LayerSettings(SolveSettings, ActivationSettings):
    """All that an equilibrium layer is made of beside its parameterization.

    Raises:
        ConfigError: A value breaks the rule of its field.
    """

    def options(self) -> dict[str, Any]:
        """The arguments of an equilibrium layer beside its parameterization.

        Returns:
            Values by name.
        """
        return {
            "activation": self.make_activation(),
            "solver": SOLVERS[self.solver](),
            "tol": self.tol,
            "max_steps": self.max_steps,
            "backward_tol": self.backward_tol,
        }


def activation_settings(activation: splitting.Activation) -> tuple[str, tuple[float, ...]]:
    """Name and parameters of an activation, no parameters where they are its defaults.

    Args:
        activation: One of ACTIVATIONS, whose parameters are the fields of a dataclass.

    Returns:
        What `ActivationSettings` makes it of.

    Raises:
        InvalidArgument: It is none of ACTIVATIONS.
    """
    kind = type(activation)
    name = ACTIVATIONS.name_of(kind)
    if name is None:
        raise InvalidArgument(f"`activation` is {activation}; a saved network knows {', '.join(ACTIVATIONS)}")
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    given = tuple(getattr(activation, field.name) for field in fields)
    return name, () if not fields or activation == kind() else given


def solver_name(solver: splitting.Solver) -> str:
    """The name of a solver with its own defaults.

    Args:
        solver: The solver.

    Returns:
        Its name in SOLVERS.

    Raises:
        InvalidArgument: SOLVERS has none, or it has other parameters than its defaults.
    """
    name = SOLVERS.name_of(type(solver))
    if name is None or solver != type(solver)():
        raise InvalidArgument(f"`solver` is {solver}; a saved network knows {', '.join(SOLVERS)} with their defaults")
    return name


def check_activation(activation: splitting.Activation, state_shape: torch.Size) -> None:
    """Raise unless σ is nondecreasing and 1-Lipschitz: known to be, or found so on a grid.

    Args:
        activation: σ.
        state_shape: The shape of one state that it is applied to.

    Raises:
        InvalidArgument: It is not, it does not act entry by entry, or its prox is not σ(point).
    """
    kind = type(activation)
    if kind in (splitting.Masked, splitting.Scaled):
        check_activation(activation.inner, state_shape)  # type: ignore[attr-defined]  # both have one
        factor = getattr(activation, "factor", torch.ones((), device="cpu"))
        _require(kind, bool((factor > 0).all()), "has a factor that is not positive")
    elif kind is splitting.Scale:
        (d,) = activation.tensors
        _require(kind, bool(((d >= 0) & (d <= 1)).all()), "has a `d` that does not lie in [0, 1]")
    elif kind in _PROVED_ACTIVATIONS.values():
        dataclasses.replace(activation)  # type: ignore[type-var]  # all are; checks the parameters as they are now
    else:
        with proving(torch.device("cpu")):
            try:
                if not activation.tensors:
                    splitting.check_activation(activation)
                _check_on_grid(activation, state_shape)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise InvalidArgument(f"`activation` {kind.__name__} does not act entry by entry: {reason}") from None


def _check_on_grid(activation: splitting.Activation, state_shape: torch.Size) -> None:
    """On a wide grid, for every entry of a state: slopes in [0, 1], and prox_f = σ as the solvers take it."""
    points = torch.logspace(-3, 6, 46, dtype=torch.float64, device="cpu")
    line = torch.cat([-points.flip(0), points.new_zeros(1), points])
    tensors = tuple(t.detach().double().cpu() for t in activation.tensors)
    kind, activation, shape = type(activation), activation.rebind(*tensors), state_shape if tensors else torch.Size()
    y = line.reshape(-1, *(1 for _ in shape)).expand(-1, *shape)
    sigma, step = activation(y), y.diff(dim=0)
    rise, slack = sigma.diff(dim=0), 1e-9 * step
    steady = bool(((rise >= -slack) & (rise <= step + slack)).all())
    _require(kind, steady, "is not nondecreasing and 1-Lipschitz, as every certificate needs")
    if activation.homogeneous:
        _require(kind, _close(activation(8 * y), 8 * sigma, y), "says that it is homogeneous, and is not")
    for alpha in (0.3, 1.0, 3.0):
        expected = activation(activation.point(y, alpha))
        for found in (activation.proximal(y, alpha), activation.proximal_at(alpha)(y, None)):
            _require(kind, _close(found, expected, y), "has a prox that is not σ(point), so it solves another problem")


def _close(found: Tensor, expected: Tensor, y: Tensor) -> bool:
    return bool(((found - expected).abs() <= 1e-6 * (1 + y.abs())).all())


def _require(kind: type[splitting.Activation], holds: bool, failure: str) -> None:
    if not holds:
        raise InvalidArgument(f"`activation` {kind.__name__} {failure}")
