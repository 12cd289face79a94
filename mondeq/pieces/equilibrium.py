"""The equilibrium layer: x ↦ z*, solved by splitting, differentiated implicitly, proved piece by piece."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import splitting
from mondeq.errors import ConfigError
from mondeq.norms import Ball, Box, Norm
from mondeq.parameterizations import PARAMETERIZATIONS, Correlations, Noise, Parameterization
from mondeq.pieces.base import PIECES, Blocks, Proof, Unproved
from mondeq.pieces.linear import linear_box, scaled_radius
from mondeq.pieces.solved import SolvedPiece
from mondeq.settings import Mapping, setting
from mondeq.solving import LayerSettings, activation_settings, check_activation, solver_name
from splitting import (
    Derived,
    InvalidArgument,
    InvalidType,
    Monitor,
    OnFailure,
    Slopes,
    SplittingError,
    full_precision,
    is_recorded,
    is_transformed,
    uncompiled,
    verified,
)

# Evaluating σ in float64 is taken to be right to this many units in the last place of the result.
_ACTIVATION_ULPS = 4


@dataclass(frozen=True)
class EquilibriumSettings(LayerSettings):
    """Of an equilibrium: a parameterization, an activation, how it is solved.

    Args:
        parameterization: `{"kind": NAME, …its settings}`, with a name in PARAMETERIZATIONS.
    """

    parameterization: dict[str, Any] = setting(Mapping(), {})


@PIECES.enrol("equilibrium")
class EquilibriumLayer(SolvedPiece):
    """z with z = σ(Wz + Ux + b), for the W, U, b that `linear` owns.

    In training mode the operator is built at every call. In evaluation mode it is built, its resolvent inverted and
    its step tuned once: kept until a value, dtype or device of a weight, or any other attribute of `linear`, changes.

    Args:
        linear: The parameterization, such as mondeq.Dense.
        activation: σ; splitting.ReLU() by default.
        solver: splitting.PeacemanRachford() by default.
        tol: Relative residual at which a sample stops.
        max_steps: Steps after which a solve gives up.
        backward_tol: That of the backward solve; `tol` by default.
        on_failure: What a solve that gives up does: "warn", "raise" or "return".
        monitor: Called with ("forward" | "backward", Solution) after every solve.

    Raises:
        InvalidType: `linear`, `activation` or `solver` is none.
        InvalidArgument: A tolerance or number of steps is out of range.
    """

    Settings = EquilibriumSettings

    def __init__(
        self,
        linear: Parameterization,
        activation: splitting.Activation | None = None,
        solver: splitting.Solver | None = None,
        tol: float = 1e-5,
        max_steps: int = 300,
        *,
        backward_tol: float | None = None,
        on_failure: OnFailure = "warn",
        monitor: Monitor | None = None,
    ) -> None:
        _require_parameterization(linear)
        activation = splitting.ReLU() if activation is None else activation
        if not isinstance(activation, splitting.Activation):
            raise InvalidType(f"`activation` must be one such as splitting.ReLU(), got {activation!r}")
        solver = splitting.PeacemanRachford() if solver is None else solver
        super().__init__(solver, tol, max_steps, backward_tol, on_failure, monitor)
        self.linear = linear
        self.activation = activation
        self._kept: _Kept | None = None

    def forward(self, x: Tensor, initial: Tensor | None = None) -> Tensor:
        """The equilibria of inputs, differentiable in the inputs and the weights.

        It computes in the dtype of the weights, also inside `torch.autocast`.

        Args:
            x: Inputs (batch, …).
            initial: States to start from, one per sample; no gradient flows to them.

        Returns:
            z, (batch, *state_shape).

        Raises:
            InvalidType: Inputs or states have another type, dtype or device than the weights.
            InvalidArgument: They have another shape.
            NotConverged: A sample misses the tolerance and `on_failure` is "raise".
        """
        return self._state(x, initial)

    @uncompiled
    def _state(self, x: Tensor, initial: Tensor | None = None) -> Tensor:
        with full_precision(_device(x)):
            operator, solver = self._operator()
            return splitting.equilibrium(
                splitting.Inclusion(operator, self.linear.source(x), self.prox),
                solver,
                initial=initial,
                **self.options,
            )

    @torch.no_grad()
    def solve(
        self, x: Tensor, *, tol: float | None = None, max_steps: int | None = None, initial: Tensor | None = None
    ) -> splitting.Solution:
        """The same points without a graph, with per-sample diagnostics.

        Args:
            x: Inputs (batch, …).
            tol: Relative residual at which a sample stops; the layer's by default.
            max_steps: Steps after which the solve gives up; the layer's by default.
            initial: States to start from, one per sample.

        Returns:
            The solution.

        Raises:
            InvalidType: Inputs or states have another type, dtype or device than the weights.
            InvalidArgument: They have another shape, or an option is out of range.
            NotConverged: A sample misses the tolerance and `on_failure` is "raise".
        """
        with full_precision(_device(x)):
            operator, solver = self._operator()
            return splitting.solve(
                splitting.Inclusion(operator, self.linear.source(x), self.prox),
                solver,
                tol=self.tol if tol is None else tol,
                max_steps=self.max_steps if max_steps is None else max_steps,
                initial=initial,
                on_failure=self.on_failure,
            )

    @property
    def prox(self) -> splitting.Activation:
        """The activation as the equilibrium has it: that of a convolution is zero on the border."""
        return self.linear.confined(self.activation)

    def tuned(self, solver: splitting.Solver) -> splitting.Solver:
        return solver.tuned(self.linear.operator())

    # -- a piece of a network ----------------------------------------------------------------------------------------

    @property
    def in_shape(self) -> torch.Size:  # type: ignore[override]  # it depends on the parameterization
        return self.linear.in_shape

    @classmethod
    def example(cls) -> tuple[EquilibriumSettings, torch.Size]:
        parameterization = {"kind": "dense", "features": 5, "m": 0.5}
        return EquilibriumSettings(activation="tanh", parameterization=parameterization), torch.Size((2, 3, 2))

    def settings(self) -> EquilibriumSettings:
        linear = self.linear
        kind = PARAMETERIZATIONS.name_of(type(linear))
        if kind is None:
            known = ", ".join(PARAMETERIZATIONS)
            raise InvalidArgument(f"`linear` is a {type(linear).__name__}; a saved network knows {known}")
        activation, parameters = activation_settings(self.activation)
        return type(self).Settings(
            activation=activation,
            activation_parameters=parameters,
            solver=solver_name(self.solver),
            tol=self.tol,
            max_steps=self.max_steps,
            backward_tol=None if self.backward_tol == self.tol else self.backward_tol,
            parameterization={"kind": kind, **linear.settings().to_dict()},
        )

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> EquilibriumLayer:
        given = dict(settings.parameterization)
        kind: Any = PARAMETERIZATIONS[given.pop("kind", None)]
        try:
            linear = kind.make(kind.Settings.from_dict(given), in_shape)
        except SplittingError as error:
            raise ConfigError(str(error)) from None
        return cls(linear, **settings.options())

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        _require_parameterization(self.linear)
        self.linear.check_inputs(in_shape)
        return self.linear.state_shape

    def entries(self, in_shape: torch.Size) -> int:
        return self.linear.state_shape.numel()

    def check(self) -> None:
        self.linear.check_contract()
        check_activation(self.activation, self.linear.state_shape)

    def facts(self) -> dict[str, float]:
        operator = self.linear.operator()
        return {"strong_monotonicity": operator.strong_monotonicity, "operator_norm": operator.lipschitz}

    def sharpen(self) -> None:
        super().sharpen()
        tensors = tuple(t.detach().clone().double() for t in self.activation.tensors)
        self.activation = self.activation.rebind(*tensors)
        self.solver, self.tol = self.linear.proving_solver, self.linear.proving_tol
        self.backward_tol, self.max_steps = self.tol, 5000

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        return [EquilibriumProof(self, norm, in_shape)]

    def lipschitz_estimate(self, norm: Norm, in_shape: torch.Size) -> tuple[Tensor | float, Norm]:
        linear = self.linear
        scale = _scale(norm, in_shape, linear)
        return linear.input_norm_estimate(scale) / linear.monotonicity_estimate(), Norm(linear.root_metric_estimate())

    def box_estimate(self, box: Box) -> Box:
        weights = self.linear.contraction()
        if weights is None:
            raise Unproved(f"has a {type(self.linear).__name__}, which knows no boxes; use mondeq.IntervalDense")
        W, U, b = weights
        prox = self.prox
        source = linear_box(U, b, Box(box.lower.flatten(1), box.upper.flatten(1)))

        def embedded(z: Tensor, source: Tensor, W: Tensor) -> Tensor:
            half, middle = (z[:, 1] - z[:, 0]) / 2, (z[:, 1] + z[:, 0]) / 2
            spread, value = functional.linear(half, W.abs()), functional.linear(middle, W)
            return prox(torch.stack([value - spread, value + spread], 1) + source)

        with full_precision(_device(W)):
            ends = torch.stack([source.lower, source.upper], 1)
            # The contraction makes plain iteration as good as any method.
            problem = splitting.FixedPoint(embedded, ends, prox(ends.detach()), (W,))
            z = splitting.equilibrium(problem, splitting.Iterate(), **self.options)
        return Box(z[:, 0], z[:, 1])

    def _operator(self) -> tuple[splitting.Operator, splitting.Solver]:
        tensors, settings = _ingredients(self.linear)
        if self.training or any(map(is_transformed, tensors.values())):
            return self.linear.operator(), self.solver
        if self._kept is None or not self._kept.fits(tensors, settings, self.solver):
            # What is kept must serve later calls outside inference mode too.
            with torch.inference_mode(False), torch.no_grad():
                self._kept = _Kept.of(self.linear, tensors, settings, self.solver)
        operator = self._kept.operator
        if is_recorded(*tensors.values()):
            operator = operator.rebind(*self.linear.operator().tensors)
        return operator, self._kept.tuned

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": None}  # type: ignore[no-untyped-call]  # torch has none


class EquilibriumProof(Proof):
    """What is proved of an equilibrium, with one operator for all inputs.

    ‖Δz‖_Λ ≤ ‖Λ^½ U‖/m ‖Δx‖, and ‖z − z*‖_Λ ≤ (residual + rounding of the source)/m.

    Args:
        layer: The layer, in float64 and sharpened.
        norm: What inputs are measured in.
        in_shape: The shape of one input.
    """

    def __init__(self, layer: EquilibriumLayer, norm: Norm, in_shape: torch.Size) -> None:
        self.layer, self.linear = layer, layer.linear
        self.operator = self.linear.operator()
        self.m = self.operator.strong_monotonicity
        self.scale = _scale(norm, in_shape, self.linear)
        gain = verified.round_up(self.linear.input_norm(self.scale) * (1 + 1e-15))
        self.constant = verified.round_up(gain / self.m) if self.m > 0 else float("inf")
        metric = self.operator.metric
        self.norm, self.out_shape = Norm(None if metric is None else metric.double().sqrt()), self.linear.state_shape

    @cached_property
    def solver(self) -> splitting.Solver:
        """The solver with its step: none is found for weights that make no operator, and no bound needs one."""
        return self.layer.solver.tuned(self.operator)

    def solve(self, x: Tensor) -> splitting.Solution:
        """The solution for inputs, with its proved error bound.

        Args:
            x: Inputs (batch, …), float64.

        Returns:
            The solution.

        Raises:
            NotConverged: A sample misses the tolerance and the layer's `on_failure` is "raise".
        """
        problem = splitting.Inclusion(self.operator, self.linear.source(x), self.layer.prox)
        layer = self.layer
        return splitting.solve(
            problem, self.solver, tol=layer.tol, max_steps=layer.max_steps, on_failure=layer.on_failure
        )

    def enclose(self, ball: Ball) -> Ball:
        z, error = self._solved(ball.centre)
        return Ball(z, error + scaled_radius(self.constant, ball.radius), self.norm)

    def follow(self, moved: Proof, ball: Ball, near: Ball) -> tuple[Ball, Ball]:
        # No equilibrium of the other weights is solved for: they are compared at that of these.
        z, error = self._solved(ball.centre)
        out = Ball(z, error + scaled_radius(self.constant, ball.radius), self.norm)
        distance = self._distance(moved, ball.centre, z, error)  # type: ignore[arg-type]  # of the same kind
        return out, Ball(z, distance + scaled_radius(moved.constant, near.radius), moved.norm)

    def _solved(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The computed state of x, and a bound on its distance from the exact one."""
        solution = self.solve(x)
        # ‖z*(c) − z*(fl(c))‖_Λ ≤ ‖c − fl(c)‖_Λ/m, c = Ux + b.
        error = solution.error_bound + self.linear.source_rounding(x.abs().flatten(1)) / self.m
        # Where m > 0 is not proved, nothing is.
        return solution.value, torch.where((error >= 0) & (self.m > 0), error, torch.inf)

    def solved_for_readout(self, x: Tensor, reserve: float, gamma: float) -> tuple[Tensor, Tensor]:
        """The computed state of inputs, and a bound on ‖Q(z − z*)‖ for a Q that A contains.

        A residual r of the inclusion is an error e with reserve‖e‖² + ‖Qe‖²/(2γ) ≤ ⟨e, r⟩, hence ‖Qe‖² ≤ 2γ(‖r‖‖e‖ −
        reserve‖e‖²) ≤ γ‖r‖²/(2 reserve): far less than ‖Q‖‖r‖/m. What z is away from the state that has this residual
        counts ‖Q‖ ≤ √(2γ‖A‖) times.

        Args:
            x: Inputs (batch, …), float64.
            reserve: ⟨e, Ae⟩ ≥ reserve‖e‖² + ‖Qe‖²/(2γ) for all e, in the Euclidean norm; where it is not > 0, nothing
                is known.
            gamma: γ.

        Returns:
            States and bounds, (batch,).

        Raises:
            NotConverged: A sample misses the tolerance and the layer's `on_failure` is "raise".
        """
        solution = self.solve(x)
        distance, residual = cast(splitting.Inclusion, solution.problem).backward_error(solution.value)
        residual = residual + self.linear.source_rounding(x.abs().flatten(1))
        if not reserve > 0:
            return solution.value, torch.full_like(residual, torch.inf)
        gain = verified.round_up((gamma / reserve / 2) ** 0.5)
        size = verified.round_up((2 * gamma * self.operator.lipschitz) ** 0.5)
        error = (size * distance + gain * residual) * (1 + 1e-12)
        return solution.value, torch.where(error >= 0, error, torch.inf)

    def _distance(self, moved: EquilibriumProof, x: Tensor, z: Tensor, error: Tensor) -> Tensor:
        """A bound on ‖z′(x) − z‖_Λ′ for the exact state z′(x) of other weights and z within `error` of that of these.

        With δ = ΔW z + ΔU x + Δb, the exact z leaves the residual δ in the other inclusion, and ‖z′ − z‖ ≤ ‖δ‖/m′.
        Where σ is flat from the pre-activation v to v + δ, the same z is the value of both, and nothing is left.
        """
        if not moved.m > 0:
            return torch.full_like(error, torch.inf)
        size, stretch = x.abs().flatten(1), moved.norm.stretch(self.norm)
        A, A_moved = self.operator.apply(z), moved.operator.apply(z)
        c, c_moved = self.linear.source(x), moved.linear.source(x)
        delta, v = (A - A_moved) + (c_moved - c), z - A + c
        few, entries = verified.rounding_factor(8), A.abs() + A_moved.abs() + c.abs() + c_moved.abs() + z.abs()
        # What v and δ may be off by: rounding, and the error of z. (L: an upper bound on the norm of A.)
        own = self.operator.rounding(z) + self.linear.source_rounding(size) + few * self.norm.of(entries)
        v_error = own + (1 + self.operator.lipschitz) * error
        others = moved.operator.rounding(z) + moved.linear.source_rounding(size) + few * moved.norm.of(entries)
        delta_error = others + stretch * (own + (self.operator.lipschitz + moved.operator.lipschitz) * error)
        open_ = _entrywise(delta_error, moved.norm, z) + _entrywise(v_error, self.norm, z)
        open_ = open_ * (1 + few) + few * (v.abs() + delta.abs()) + verified.UNDERFLOW
        _, steepest = self.layer.prox.slopes(v + delta.clamp_max(0) - open_, v + delta.clamp_min(0) + open_)
        left = moved.norm.of(torch.where(steepest > 0, delta, 0.0))
        distance = (left + delta_error) / moved.m + stretch * error
        return torch.where(distance >= 0, distance * (1 + 1e-12), torch.inf)

    def noise(self, scale: float, deviation: float) -> Noise | None:
        return self.linear.noise(scale, deviation)

    def enclose_box(self, box: Box) -> Box:
        """A box B with T(B) ⊆ B, where T is the network's map on boxes, rounded outward.

        For every x in the given box the map z ↦ σ(Wz + Ux + b) takes B into B, so that it has a fixed point there
        (Brouwer 1911), and since A is strongly monotone it has no other. How B was found is of no account: by steps of
        T, as many as its contraction needs.

        Args:
            box: What contains the inputs, float64.

        Returns:
            What contains the states; its ends are infinite for samples for which T(B) ⊆ B did not come out.

        Raises:
            Unproved: The operator is no matrix, rows of |W| do not sum to less than 1, or m > 0 is not proved.
        """
        W, U, b, contraction = self._contraction
        source = linear_box(U, b, Box(box.lower.flatten(1), box.upper.flatten(1)))
        zero = b.new_zeros(())

        def image(states: Box) -> Box:
            moved = linear_box(W, None, states).plus(source)
            return moved.through(self.layer.prox, ulps=_ACTIVATION_ULPS)

        states = source.through(self.layer.prox)
        for _ in range(_steps(contraction)):
            states = image(states)
        # What one more step moves is moved 1/(1 − contraction) times in all. Rounding moves ends to and fro.
        further = image(states)
        size = torch.maximum(_largest(states), _largest(source)) * verified.rounding_factor(4 * len(W))
        apart = _largest(Box(states.lower - further.lower, states.upper - further.upper))
        states = states.widened(2 * (apart + size) / (1 - contraction))
        inside = image(states)
        proved = states.contains(inside)[:, None]
        return Box(inside.lower.where(proved, zero - torch.inf), inside.upper.where(proved, zero + torch.inf))

    @cached_property
    def _contraction(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """W, U, b in float64 and what rows of |W| sum to at most, by a computation that proves nothing."""
        found = self.linear.blocks()
        if found is None or not self.m > 0:
            raise Unproved("has no proved equilibrium with an operator that is a matrix, and knows no boxes")
        A, U = found
        W = torch.eye(len(A), dtype=A.dtype, device=A.device) - A
        contraction = float(W.abs().sum(1).amax())
        if not contraction < 1:
            raise Unproved(f"has rows of |W| that sum to {contraction:.3g}, and boxes need < 1; use IntervalDense")
        nothing = U.new_zeros(1, self.linear.in_features)
        return W, U, self.linear.source(nothing)[0], contraction

    def preactivations(self, ball: Ball) -> tuple[Tensor, Tensor]:
        found = self.linear.blocks()
        if found is None:
            return super().preactivations(ball)
        (A, U), state, x = found, self.enclose(ball), ball.centre.flatten(1)
        z, bias = state.centre, self.linear.source(torch.zeros_like(ball.centre[:1]))
        value = z - z @ A.mT + self.linear.source(ball.centre)
        size = z.abs() + z.abs() @ A.abs().mT + x.abs() @ U.abs().mT + bias.abs()
        terms = len(A) + U.shape[1] + 12
        rounding = verified.rounding_factor(terms) * size + terms * verified.UNDERFLOW
        # W in coordinates in which the norm of states is the 2-norm, U in those of inputs: row by row.
        W = torch.eye(len(A), dtype=A.dtype, device=A.device) - A
        rows = verified.vector_norm(W if state.norm.root is None else W / state.norm.root)
        inputs = verified.vector_norm(U * self.scale)
        error = rows * state.radius[:, None] + inputs * scaled_radius(1.0, ball.radius)[:, None] + rounding
        return value, error * (1 + 1e-12)

    def chords(self, low: Tensor, high: Tensor, reach: Tensor) -> Slopes:
        return self.layer.prox.chords(low, high, reach)

    def blocks(self) -> Blocks | None:
        found = self.linear.blocks()
        return None if found is None else Blocks(found[0], self.operator.metric, found[1] * self.scale)

    def correlations(self) -> Correlations | None:
        return self.linear.correlations(self.scale)


def _entrywise(bound: Tensor, norm: Norm, like: Tensor) -> Tensor:
    """What entries of states may be, (batch, 1, …) or like states, whose norms are at most `bound` (batch,)."""
    column = bound.reshape(-1, *[1] * (like.ndim - 1))
    return column if norm.root is None else column / norm.root


def _largest(box: Box) -> Tensor:
    """The largest modulus of an end, (batch, 1)."""
    return torch.maximum(box.lower.abs(), box.upper.abs()).amax(1, keepdim=True)


def _steps(contraction: float) -> int:
    """After how many steps a box is within 1e-6 of the equilibrium of boxes, relatively; a thousand at most."""
    return min(math.ceil(math.log(1e-6) / math.log(max(contraction, 1e-6))), 1000)


def _require_parameterization(linear: Any) -> None:
    if not isinstance(linear, Parameterization):
        raise InvalidType(f"`linear` must be a Parameterization such as mondeq.Dense, got {type(linear).__name__}")


def _scale(norm: Norm, in_shape: torch.Size, linear: Parameterization) -> Tensor:
    """What multiplies the columns of U where inputs are measured in `norm`, (in_features,) float64."""
    scale = norm.of_inputs(in_shape)
    device = next(linear.parameters()).device
    return torch.ones(linear.in_features, dtype=torch.float64, device=device) if scale is None else scale.to(device)


@dataclass(frozen=True)
class _Kept:
    """What evaluation keeps between calls, and what it was made of."""

    compared: tuple[str, ...]  # the names of the weights that decide the operator
    tensors: Derived  # and their values
    names: tuple[str, ...]
    settings: dict[str, Any] | None  # None where they cannot be copied: then nothing tells whether they changed
    solver: splitting.Solver
    operator: splitting.Operator
    tuned: splitting.Solver

    @staticmethod
    def of(
        linear: Parameterization, tensors: dict[str, Tensor], settings: dict[str, Any], solver: splitting.Solver
    ) -> _Kept:
        try:
            copied = copy.deepcopy(settings)
        except Exception:  # whatever a stranger's attributes raise
            copied = None
        # The operator has copies of its own values too, which the comparison of the ingredients makes needless.
        operator, compared = linear.operator().snapshot(), _decisive(linear, tensors)
        values = Derived([tensors[name] for name in compared])
        return _Kept(compared, values, tuple(tensors), copied, solver, operator, solver.tuned(operator))

    def fits(self, tensors: dict[str, Tensor], settings: dict[str, Any], solver: splitting.Solver) -> bool:
        if self.solver != solver or self.names != tuple(tensors) or self.settings is None:
            return False
        try:
            same = bool(self.settings == settings)
        except Exception:  # the comparison of a stranger's attributes
            return False
        return same and self.tensors.fits([tensors[name] for name in self.compared])


def _decisive(linear: Parameterization, tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """The names of the weights that decide the operator.

    To compare U and b too, which seldom do, costs 6 % of an evaluation of 87 units.
    """
    defined = {"operator", "operator_weights"}
    # A class that inherits one of the two, or an object with one of its own, may mean another operator.
    believed = defined <= vars(type(linear)).keys() and not defined & vars(linear).keys()
    weights = linear.operator_weights() if believed else None
    wanted = None if weights is None else {id(weight) for weight in weights}
    if wanted is None or not wanted <= {id(tensor) for tensor in tensors.values()}:
        return tuple(tensors)
    return tuple(name for name, tensor in tensors.items() if id(tensor) in wanted)


_INTERNAL = frozenset(vars(nn.Module()))


def _ingredients(linear: Parameterization) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that can decide what `linear.operator()` is: weights and other tensors by name, and every plain attribute."""
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for prefix, module in linear.named_modules():
        own = {name: value for name, value in vars(module).items() if name not in _INTERNAL}
        for name, value in {**module._parameters, **module._buffers, **own}.items():
            kind: dict[str, Any] = tensors if isinstance(value, Tensor) else settings
            kind[f"{prefix}.{name}"] = value
    return tensors, settings


def _device(x: object) -> torch.device:
    """That of the input; the source says what is wrong with what is no tensor."""
    return x.device if isinstance(x, Tensor) else torch.device("cpu")
