"""What attacks find together: for every image the nearest one of another class, judged by the exact float64 network.

Attacks search in a network that is solved to a moderate tolerance. What they find is moved along the straight line to
the image as far as the exact network still gives it another class, and its distance is rounded up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mondeq import arguments, values
from mondeq.attacks.base import Attack, Target, Watched, prepared
from mondeq.attacks.geometry import GEOMETRIES, Geometry
from mondeq.bounds import Chain
from mondeq.certificates import Certifier, Report
from mondeq.modes import proving
from mondeq.network import Network, exact_copy
from splitting import InvalidArgument, InvalidType

# Images, states and pixels of random points at a time. The decision-based attack holds some 60 points of each image.
_AT_ONCE, _ENTRIES_AT_ONCE, _POINTS = 500, 2**24, 60
# Halvings of the line to the image. What is found on the wrong side of the boundary gets a second try a bit further.
_HALVINGS, _FURTHER = 10, 1.02


@dataclass(frozen=True, eq=False)
class Adversarials:
    """The nearest images of another class that attacks found, one entry per image.

    Args:
        distances: By attack; distances from the image (N,) float64, rounded up; 0 where the image itself has another
            class than its label, inf where the attack found nothing.
        examples: The nearest of all, (N, *in_shape) float64; the image itself where there is none.
        proved: Whether the exact network is proved to give the example another class; never without a certifier.
        norm: The name of the norm of the distances.
        gradients: How many gradients of images were computed.
        zeros: How many of these were exactly 0.
    """

    distances: dict[str, Tensor]
    examples: Tensor
    proved: Tensor
    norm: str
    gradients: int
    zeros: int

    @property
    def distance(self) -> Tensor:
        """The distance of the nearest of all, (N,)."""
        return torch.stack(list(self.distances.values())).amin(0)

    @property
    def zero_gradients(self) -> float:
        """The share of gradients that were exactly 0. Where it is not near 0, gradient attacks were blind."""
        return self.zeros / max(self.gradients, 1)


class AttackedAccuracy(dict[float, float]):
    """{radius: share of images still classified right}, with a sign of whether the attack could see.

    Args:
        accuracy: The shares by radius.
        zero_gradients: The share of gradients that were exactly 0. Where it is not near 0 the attack was blind, and the
            accuracies say little.
    """

    def __init__(self, accuracy: dict[float, float], zero_gradients: float) -> None:
        super().__init__(accuracy)
        self.zero_gradients = zero_gradients


def accuracy_under_attack(
    model: Network,
    images: Tensor,
    labels: Tensor,
    radii: Iterable[float],
    *,
    norm: str = "l2",
    attacks: Iterable[str] | None = None,
    steps: int = 50,
    seed: int = 0,
) -> AttackedAccuracy:
    """Accuracy under all attacks together at each radius: an upper bound on robust accuracy.

    Certified accuracy is the lower bound. What fools at one radius fools at all larger.

    Args:
        model: Any network.
        images: (N, C, H, W) in [0, 1], floating point. Attacked images stay in that box.
        labels: (N,) integers.
        radii: Numbers ≥ 0, at least one.
        norm: That of the radii, "l2" or "linf".
        attacks: Names in `ATTACKS`; by default all that suit the norm.
        steps: Of each search.
        seed: Of the random points, which have a generator of their own.

    Returns:
        The share of images still classified right, by radius.

    Raises:
        ConfigError: There is no such attack or norm, or Foolbox is missing.
        InvalidType: An argument is of another type, dtype or device, or it is not certain that model(x) is what its
            pieces say.
        InvalidArgument: There are no images or radii, pixels lie outside [0, 1], labels are wrong, or it is not certain
            that model(x) is what its pieces say.
    """
    wanted = arguments.radii(radii)
    if not wanted:
        raise InvalidArgument("`radii` are none; give at least one")
    found = nearest_adversarials(
        model, images, labels, radii=wanted, norm=norm, attacks=attacks, steps=steps, seed=seed
    )
    return AttackedAccuracy({r: standing(found.distance, r) for r in wanted}, found.zero_gradients)


def standing(distance: Tensor, radius: float) -> float:
    """The share of images whose nearest adversarial example is further than a radius.

    Args:
        distance: Those of the examples, (N,); 0 of images that are wrong from the start, inf where there is none.
        radius: A number ≥ 0.

    Returns:
        The share.
    """
    return float((torch.isinf(distance) | (distance > radius)).double().mean())


def nearest_adversarials(
    model: Network,
    images: Tensor,
    labels: Tensor,
    *,
    radii: Iterable[float] = (),
    norm: str = "l2",
    attacks: Iterable[str] | None = None,
    certifier: Certifier | None = None,
    within: Tensor | None = None,
    steps: int = 50,
    seed: int = 0,
) -> Adversarials:
    """The nearest image of another class that any attack finds, for every image.

    Args:
        model: Any network.
        images: (N, C, H, W) in [0, 1], floating point. Attacked images stay in that box.
        labels: The classes that are to be left, (N,) integers: those of the data, or the network's predictions.
        radii: Numbers ≥ 0: descents search these balls. Without any, only attacks that choose their own find something.
        norm: That of the distances, "l2" or "linf".
        attacks: Names in `ATTACKS`; by default all that suit the norm.
        certifier: `mondeq.Certifier(model, norm)`. With it an example counts only where the exact network is proved to
            give it another class.
        within: A radius of its own for every image, (N,) ≥ 0, which is searched first: a certified one, say.
        steps: Of each search.
        seed: Of the random points, which have a generator of their own.

    Returns:
        The examples and their distances.

    Raises:
        ConfigError: There is no such attack or norm, or Foolbox is missing.
        InvalidType: An argument is of another type, dtype or device, or it is not certain that model(x) is what its
            pieces say.
        InvalidArgument: There are no images, pixels lie outside [0, 1], labels are wrong, the certifier belongs to
            other weights or another norm, or it is not certain that model(x) is what its pieces say.
    """
    judge = _Judge.of(model, certifier, norm)
    exact = judge.exact
    _check(exact, images, labels)
    wanted, steps = sorted({r for r in arguments.radii(radii) if r > 0}), arguments.count("steps", steps)
    number = values.whole(seed)
    if number is None or not 0 <= number < 2**63:
        raise InvalidArgument(f"`seed` must be an integer ≥ 0 and < 2^63, got {values.shown(seed)}")
    geometry = GEOMETRIES[norm]
    chosen = prepared(geometry, attacks)
    with proving(exact.device):
        images, labels = images.detach().double(), labels.to(exact.device).long()
        reach = geometry.reach(exact.in_shape)
        balls = [torch.full((len(images),), min(r, reach), dtype=torch.float64, device=exact.device) for r in wanted]
        if within is not None:
            balls.insert(0, _own_radii(within, len(images), exact.device).clamp_max(reach))
        parts = []
        for rows in torch.arange(len(images), device=exact.device).split(at_once(exact)):
            generator = torch.Generator("cpu").manual_seed((number + int(rows[0])) % 2**63)
            inside = [ball[rows] for ball in balls]
            parts.append(_attack(judge, chosen, images[rows], labels[rows], inside, geometry, steps, generator))
        distances = {name: torch.cat([part.distances[name] for part in parts]) for name in chosen}
        examples, proved = (torch.cat([getattr(part, c) for part in parts]) for c in ("examples", "proved"))
    totals = (sum(getattr(part, count) for part in parts) for count in ("gradients", "zeros"))
    return Adversarials(distances, examples, proved, norm, *totals)


def violations(report: Report, found: Adversarials) -> Tensor:
    """Which images have an example within their certified radius: each of them proves a certificate wrong.

    Distances are rounded up, and examples have another class than the prediction under any rounding.

    Args:
        report: What `certify` found.
        found: What attacks on `report.prediction` found with a certifier, for the same images and norm.

    Returns:
        The numbers of the images.

    Raises:
        InvalidArgument: They are of other images or another norm.
    """
    if found.norm != report.norm or len(found.proved) != len(report.radius):
        raise InvalidArgument(
            f"`found` is about {len(found.proved)} images in {found.norm}, `report` about {len(report.radius)} in "
            f"{report.norm}; attack the images that were certified"
        )
    inside = found.distance.cpu() <= report.radius.cpu()
    return (found.proved.cpu() & inside).nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class _Judge:
    """The exact network, and with a chain of proofs what its logits may be wrong by."""

    exact: Network
    chain: Chain | None

    @staticmethod
    def of(model: Network, certifier: Certifier | None, norm: str) -> _Judge:
        if certifier is None:
            return _Judge(exact_copy(model), None)
        if not isinstance(certifier, Certifier):
            raise InvalidType(f"`certifier` must be a mondeq.Certifier, got {type(certifier).__name__}")
        certifier.check_owner(model)
        if certifier.chain.norm != norm:
            raise InvalidArgument(f"`certifier` was prepared for the norm {certifier.chain.norm!r}, not for {norm!r}")
        return _Judge(certifier.chain.exact, certifier.chain)

    def fooled(self, points: Tensor, labels: Tensor) -> Tensor:
        """Whether another class than the label has the larger logit: proved, where there is a chain."""
        if self.chain is None:
            return self.exact(points).argmax(1) != labels
        logits = self.chain.stages[-1].logits(self.chain.enclose(points))
        lead = logits.value - logits.value.gather(1, labels[:, None])
        # The label's own lead is 0, and its slack not negative. Doubled for what is rounded here.
        return (lead > 2 * logits.slack(labels)).any(1)


def _attack(
    judge: _Judge,
    attacks: dict[str, Attack],
    images: Tensor,
    labels: Tensor,
    radii: list[Tensor],
    geometry: type[Geometry],
    steps: int,
    generator: torch.Generator,
) -> Adversarials:
    """All attacks on images that fit into memory at once."""
    right = judge.exact(images).argmax(1) == labels
    examples, distances = images.clone(), {}
    nearest = torch.where(right, torch.inf, 0.0).double()
    rows = right.nonzero()[:, 0]
    watched = Watched(judge.exact, images)
    target = Target(watched, images[rows], labels[rows], [r[rows] for r in radii], geometry, steps, generator)
    for name, attack in attacks.items():
        distance = nearest.new_zeros(len(images))
        if len(rows):
            points = attack.search(target).detach().clamp(0, 1)
            points, distance[rows] = _approach(judge, target, points)
            better = distance[rows] < nearest[rows]
            nearest[rows[better]], examples[rows[better]] = distance[rows[better]], points[better]
        distances[name] = distance
    proved = torch.zeros_like(right) if judge.chain is None else right & torch.isfinite(nearest)
    return Adversarials(distances, examples, proved, "", watched.gradients, watched.zeros)


def _approach(judge: _Judge, target: Target, points: Tensor) -> tuple[Tensor, Tensor]:
    """The points moved towards their images while they still fool, and their distances; inf where none fools."""
    images, labels = target.images, target.labels

    def along(share: Tensor, rows: Tensor) -> Tensor:
        column = share.reshape(-1, *[1] * (images.ndim - 1))
        return (images[rows] + column * (points[rows] - images[rows])).clamp(0, 1)

    every = torch.arange(len(images), device=images.device)
    high = torch.ones_like(labels, dtype=images.dtype)
    fooled = judge.fooled(points, labels)
    high[~fooled] = _FURTHER
    rows = every[~fooled]
    fooled[rows] = judge.fooled(along(high[rows], rows), labels[rows])
    rows = every[fooled]
    low = torch.zeros_like(high)
    for _ in range(_HALVINGS if len(rows) else 0):
        middle = (low[rows] + high[rows]) / 2
        wrong = judge.fooled(along(middle, rows), labels[rows])
        high[rows], low[rows] = torch.where(wrong, middle, high[rows]), torch.where(wrong, low[rows], middle)
    examples = along(high, every)
    distance = torch.where(fooled, target.geometry.size(examples - images), torch.inf)
    return examples, distance


def at_once(exact: Network) -> int:
    """How many images are attacked at a time, which bounds the memory: about 2 GiB.

    Args:
        exact: The network.

    Returns:
        At least 1.
    """
    entries = max(exact.largest, _POINTS * exact.in_shape.numel() // 2)
    return min(max(_ENTRIES_AT_ONCE // entries, 1), _AT_ONCE)


def _own_radii(within: Tensor, count: int, device: torch.device) -> Tensor:
    if not isinstance(within, Tensor) or within.shape != (count,) or not bool((within >= 0).all()):
        raise InvalidArgument(f"`within` must be a tensor of {count} radii ≥ 0, got {values.shown(within)}")
    return within.detach().to(device, torch.float64)


def _check(exact: Network, images: Tensor, labels: Tensor) -> None:
    arguments.check_images(exact.in_shape, images)
    arguments.check_values(images, exact.device, "nothing can be attacked there")
    if not len(images):
        raise InvalidArgument("`images` are none; there is nothing to attack")
    if not 0 <= float(images.min()) <= float(images.max()) <= 1:
        raise InvalidArgument(
            f"`images` must lie in [0, 1], got {float(images.min()):.4g} … {float(images.max()):.4g}; attacked images "
            "stay in that box"
        )
    arguments.check_labels(exact.classes, labels, len(images))
