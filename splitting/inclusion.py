"""The problem: find z with 0 ∈ A z − c + ∂f(z), equivalently z = σ((I − A) z + c) with σ = prox_f."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from splitting.errors import InvalidArgument, InvalidType
from splitting.operators import Operator
from splitting.prox import Activation


@dataclass(frozen=True, eq=False)
class Inclusion:
    """A, c and f together, checked to fit.

    operator: A. source: c, (batch, *operator.state_shape), of the operator's dtype and device. prox: σ = prox_f.
    Has exactly one solution per sample where operator.strong_monotonicity > 0. Raises InvalidType, InvalidArgument.
    """

    operator: Operator
    source: Tensor
    prox: Activation

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Operator):
            raise InvalidType(f"`operator` must be a splitting.Operator, got {type(self.operator).__name__}")
        if not isinstance(self.prox, Activation):
            raise InvalidType(
                f"`prox` must be a splitting.Activation such as splitting.ReLU(), got {type(self.prox).__name__}"
            )
        check_state("source", self.source, self.operator)

    def frozen(self) -> Inclusion:
        """This problem for a computation during which its tensors keep their values, and without a graph."""
        operator = self.operator.rebind(*(t.detach() for t in self.operator.tensors))
        prox = self.prox.rebind(*(t.detach() for t in self.prox.tensors))
        return Inclusion(operator, self.source.detach(), prox)

    def snapshot(self) -> Inclusion:
        """This problem on copies of its tensors, which no change of these reaches."""
        prox = self.prox.rebind(*(t.detach().clone() for t in self.prox.tensors))
        return Inclusion(self.operator.snapshot(), self.source.detach().clone(), prox)

    def double(self) -> Inclusion:
        """The same numbers in float64."""
        prox = self.prox.rebind(*(t.double() for t in self.prox.tensors))
        return Inclusion(self.operator.double(), self.source.detach().double(), prox)


def check_state(name: str, state: Tensor, operator: Operator) -> None:
    """Raise unless `state` is a batch of states that `operator` can act on."""
    expected = tuple(operator.state_shape)
    if not isinstance(state, Tensor):
        raise InvalidType(f"`{name}` must be a tensor, got {type(state).__name__}")
    if tuple(state.shape[1:]) != expected or state.ndim != len(expected) + 1:
        raise InvalidArgument(
            f"`{name}` must have shape (batch, {', '.join(map(str, expected))}), got {tuple(state.shape)}"
        )
    if state.dtype != operator.dtype:
        raise InvalidType(f"`{name}` is {state.dtype} but the operator is {operator.dtype}; convert one of them")
    if state.device != operator.device:
        raise InvalidType(f"`{name}` is on {state.device} but the operator is on {operator.device}; move one of them")
