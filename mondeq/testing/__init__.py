"""For tests of one's own parameterizations and models: Hypothesis strategies to draw from, properties to hold them to.

    from hypothesis import given, strategies as st
    from mondeq.testing import activations, check_unique_equilibrium, inputs

    @given(st.data(), activations())
    def test_mine(data, activation):
        linear = Mine(in_features=3, features=5)
        check_unique_equilibrium(linear, activation, data.draw(inputs(linear)))

A property returns if it holds and raises AssertionError, one line with the numbers, if it does not.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError:
    raise ImportError('mondeq.testing needs the hypothesis package: pip install "mondeq[testing]"') from None

from mondeq.testing.properties import check_certificate, check_lipschitz, check_unique_equilibrium
from mondeq.testing.strategies import activations, convolutions, inputs, parameterizations, solvers

__all__ = [
    "activations",
    "check_certificate",
    "check_lipschitz",
    "check_unique_equilibrium",
    "convolutions",
    "inputs",
    "parameterizations",
    "solvers",
]
