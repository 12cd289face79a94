"""Cutting a split into batches of float32 images, shuffled or in order, mixed with others or not, for one process or
several."""

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mondeq.data.dataset import Split
from mondeq.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of a split, as `batches` returns them.

    Each iteration is one epoch, one pass over `split`, and `len` is the number of batches in it.

    Attributes:
        split: The images and labels that are cut into batches.
        batch_size: The number of samples of `split` in a batch; the last one may have fewer.
        generator: What the permutation of every epoch is drawn from; None if the samples come in order.
        device: Where the batches are.
        rank: The number of this process among `world_size` processes.
        world_size: The number of processes that share the split.
        extra: Further images that are mixed in; None for none.
        extra_size: The number of them in a batch, fewer in proportion in the last.
        transform: What is made of the bytes of a batch; None if they stay as they are.
    """

    split: Split
    batch_size: int
    generator: torch.Generator | None
    device: torch.device
    rank: int
    world_size: int
    extra: Split | None = None
    extra_size: int = 0
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __len__(self) -> int:
        return -(-self._count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        share = self._share()
        others = None if self.extra is None else self._shuffled(len(self.extra), len(self) * self.extra_size)
        for step in range(len(self)):
            chosen = share[step * self.batch_size :][: self.batch_size]
            images, labels = self.split.images[chosen], self.split.labels[chosen]
            if self.extra is not None and others is not None:
                added = others[step * self.extra_size :][: self.extra_size * len(chosen) // self.batch_size]
                images = torch.cat([images, self.extra.images[added]])
                labels = torch.cat([labels, self.extra.labels[added]])
            images = images if self.transform is None else self.transform(images)
            # Bytes travel to the device, not floats: a quarter of the traffic.
            yield images.to(self.device).to(torch.float32).div_(255), labels.to(self.device)

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
        return self._shuffled(len(self.split), self._count)

    def _shuffled(self, total: int, count: int) -> torch.Tensor:
        """This rank's `count` places of a permutation of `total` samples, again from its start after its end."""
        generator = self.generator
        device = None if generator is None else generator.device
        order = torch.randperm(total, generator=generator, device=device).cpu()
        # Every world_size-th place, counted around the end: equal counts, and step k of all ranks together
        # holds the samples of step k of a single process with the joint batch size.
        places = torch.arange(count, device="cpu") * self.world_size + self.rank
        return order[places % total]


def batches(
    split: Split,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
    rank: int = 0,
    world_size: int = 1,
    extra: Split | None = None,
    extra_share: float = 0.75,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Batches:
    """Cut a split into batches on `device`: images float32 (B, C, H, W) in [0, 1], and labels int64 (B,).

    With a `generator` every epoch is a new permutation drawn from it. Give the generators of all ranks the same seed:
    they then draw the same permutation, of which each rank takes an equal number of samples (fewer than `world_size` of
    them come twice to make that possible), so that ranks which meet at every step never wait in vain. Without a
    generator the samples come in order, each exactly once: rank after rank gives the split back.

    With `extra` a batch consists of samples of both, ⌊extra_share·batch_size⌋ of `extra` and the rest of the split. An
    epoch is still one pass over the split, so that it has more batches. The samples of `extra` come in a permutation of
    their own, drawn anew for every epoch: as many as the batches take, from its start again where it is too short.

    Images are converted batch by batch, and nothing else of a split is copied. The tensors are new and may be written
    to.

    Args:
        split: The images and labels to cut, such as `dataset.train`.
        batch_size: The number of samples of a batch, at least 1. The last batch may be smaller.
        generator: What the permutations are drawn from. Without it there are none.
        device: Where the batches shall be.
        rank: The number of this process, at least 0 and less than `world_size`.
        world_size: The number of processes that share the split, at least 1.
        extra: Further samples to mix in, of images of the same shape.
        extra_share: The share of them in a batch, in (0, 1). Each batch needs one at least.
        transform: What is made of the bytes of a batch before they are converted: a function of uint8 images (B, C, H,
            W) on the CPU that returns others.

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
    added = 0 if extra is None else _added(split, batch_size, generator, extra, extra_share)
    place = _device(device)
    return Batches(split, batch_size - added, generator, place, rank, world_size, extra, added, transform)


def _added(split: Split, batch_size: int, generator: object, extra: object, share: object) -> int:
    """How many samples of a batch are those of `extra`."""
    if not isinstance(extra, Split):
        raise ConfigError(f"`extra` is a {type(extra).__name__}; it must be a `Split`, such as `dataset.train`")
    if generator is None:
        raise ConfigError("`extra` is mixed in at random; give a `generator` too")
    if extra.images.shape[1:] != split.images.shape[1:]:
        shapes = [tuple(each.images.shape[1:]) for each in (extra, split)]
        raise ConfigError(f"`extra` has images of shape {shapes[0]}, and the split of {shapes[1]}")
    if not isinstance(share, (int, float)) or not 0 < share < 1:
        raise ConfigError(f"`extra_share` is {share!r}; it must be a number in (0, 1)")
    # Rounded down, so that what is left of a batch is no less than its share; 0.29·100 is less than 29 in floats.
    added = math.floor(share * batch_size + 1e-9)
    if not added:
        raise ConfigError(
            f"`extra_share` is {share:g}, less than one image of a batch of {batch_size} (of each process); raise it, "
            "or `batch_size`"
        )
    return added


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
