"""What a head sees of a state: P Pᵀ = gain² I, read off P as a matrix, and what P is of a picture."""

import pytest
import torch
from torch.nn import functional

from mondeq.features import AveragePool, Entries, Features

FEATURES: dict[str, Features] = {
    "entries": Entries(torch.Size((7,))),
    "entries of a picture": Entries(torch.Size((2, 3, 4))),
    "last entries": Entries(torch.Size((7,)), start=4),
    "blocks of 2": AveragePool(torch.Size((2, 4, 6)), 2),
    "blocks of 3 that leave rows and columns over": AveragePool(torch.Size((2, 5, 7)), 3),
    "blocks of 1": AveragePool(torch.Size((2, 2, 3)), 1),
}


@pytest.mark.parametrize("name", FEATURES)
def test_laws(name: str) -> None:
    """Linear; the rows of P are orthogonal, of norm `gain`, with `terms` entries each; there are `count` of them."""
    features = FEATURES[name]
    shape = features.state_shape  # type: ignore[attr-defined]  # both kinds have one
    P = features(torch.eye(shape.numel(), dtype=torch.float64).reshape(-1, *shape)).mT
    assert P.shape == (features.count, shape.numel())
    torch.testing.assert_close(P @ P.mT, features.gain**2 * torch.eye(features.count, dtype=torch.float64))
    assert ((P != 0).sum(1) == features.terms).all()
    z = torch.randn(3, *shape, dtype=torch.float64)
    torch.testing.assert_close(features(z), z.flatten(1) @ P.mT)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_average_pooling_is_that_of_torch(size: int) -> None:
    z = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    pooled = AveragePool(z.shape[1:], size)(z)
    torch.testing.assert_close(pooled, functional.avg_pool2d(z, size).flatten(1))


def test_entries_start_where_they_should() -> None:
    z = torch.arange(14.0).reshape(2, 7)
    assert torch.equal(Entries(z.shape[1:], start=4)(z), z[:, 4:])
