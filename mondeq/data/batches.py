"""Cutting a split into batches of float32 images, shuffled or in order, for one process or several."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mondeq.data.dataset import Split
from mondeq.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of a split, as `batches` returns them.

    Each iteration is one epoch, and `len` is the number of batches in it.

    Attributes:
        split: The images and labels that are cut into batches.
        batch_size: The number of samples of a batch; the last one may have fewer.
        generator: What the permutation of every epoch is drawn from; None if the samples come in order.
        device: Where the batches are.
        rank: The number of this process among `world_size` processes.
        world_size: The number of processes that share the split.
    """

    split: Split
    batch_size: int
    generator: torch.Generator | None
    device: torch.device
    rank: int
    world_size: int

    def __len__(self) -> int:
        return -(-self._count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        share = self._share()
        for start in range(0, len(share), self.batch_size):
            chosen = share[start : start + self.batch_size]
            # Bytes travel to the device, not floats: a quarter of the traffic.
            images = self.split.images[chosen].to(self.device)
            yield images.to(torch.float32).div_(255), self.split.labels[chosen].to(self.device)

    @property
    def _count(self) -> int:
        """The number of samples in this rank's share."""
        if self.generator is None:
            start, stop = self._bounds
            return stop - start
        return -(-len(self.split) // self.world_size)

    @property
    def _bounds(self) -> tuple[int, int]:
        total = len(self.split)
        return total * self.rank // self.world_size, total * (self.rank + 1) // self.world_size

    def _share(self) -> torch.Tensor:
        """The positions of this rank's samples, in the order in which they come."""
        if self.generator is None:
            return torch.arange(*self._bounds, device="cpu")
        device = self.generator.device
        order = torch.randperm(len(self.split), generator=self.generator, device=device).cpu()
        # Every world_size-th place, counted around the end: equal counts, and step k of all ranks together
        # holds the samples of step k of a single process with the joint batch size.
        places = torch.arange(self._count, device="cpu") * self.world_size + self.rank
        return order[places % len(order)]


def batches(
    split: Split,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Batches:
    """Cut a split into batches on `device`: images float32 (B, C, H, W) in [0, 1], and labels int64 (B,).

    With a `generator` every epoch is a new permutation drawn from it. Give the generators of all ranks the same seed:
    they then draw the same permutation, of which each rank takes an equal number of samples (fewer than `world_size` of
    them come twice to make that possible), so that ranks which meet at every step never wait in vain. Without a
    generator the samples come in order, each exactly once: rank after rank gives the split back.

    Images are converted batch by batch. The tensors are new and may be written to.

    Args:
        split: The images and labels to cut, such as `dataset.train`.
        batch_size: The number of samples of a batch, at least 1. The last batch may be smaller.
        generator: What the permutations are drawn from. Without it there are none.
        device: Where the batches shall be.
        rank: The number of this process, at least 0 and less than `world_size`.
        world_size: The number of processes that share the split, at least 1.

    Returns:
        An iterable of pairs (images, labels). Each iteration over it is one epoch.

    Raises:
        ConfigError: `batch_size`, `rank` or `world_size` is no whole number or is out of range, or another argument is
            of another kind.
    """
    if not isinstance(split, Split):
        raise ConfigError(f"`split` is a {type(split).__name__}; it must be a `Split`, such as `dataset.train`")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ConfigError(f"`generator` is a {type(generator).__name__}; it must be a `torch.Generator` or None")
    batch_size, rank = _whole("batch_size", batch_size), _whole("rank", rank)
    world_size = _whole("world_size", world_size)
    if batch_size < 1:
        raise ConfigError(f"`batch_size` is {batch_size}; it must be at least 1")
    if world_size < 1:
        raise ConfigError(f"`world_size` is {world_size}; it must be at least 1")
    if not 0 <= rank < world_size:
        raise ConfigError(f"`rank` is {rank}; it must be at least 0 and less than `world_size`, {world_size}")
    return Batches(split, batch_size, generator, _device(device), rank, world_size)


def _whole(argument: str, value: object) -> int:
    """`value` as an int, if it is a whole number of Python, numpy or torch; True and False are none."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]  # what is no number is the error below
    except TypeError:
        pass
    raise ConfigError(f"`{argument}` is {value!r}; it must be a whole number")


def _device(device: object) -> torch.device:
    try:
        return torch.device(device)  # type: ignore[call-overload]  # what is no device is the error below
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"`device` is {device!r}, which is no device of torch ({reason})") from error
