"""Attacks on classifiers, with the Foolbox library: what an adversary finds, to hold certificates against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mondeq import arguments, values
from mondeq.errors import ConfigError
from mondeq.modes import proving
from mondeq.network import Network, detached_copy
from splitting import InvalidArgument

__all__ = [
    "AttackedAccuracy",
    "accuracy_under_attack",
]

# (rival, random start): the rival class is the likeliest other at every point, or number 1, 2, … at the clean image.
_SEARCHES = ((0, False), (0, True), (1, False), (2, True))


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
    model: Network, images: Tensor, labels: Tensor, radii: Iterable[float], *, steps: int = 50, seed: int = 0
) -> AttackedAccuracy:
    """Accuracy after ℓ2 projected gradient descent at each radius: an upper bound on robust accuracy.

    Certified accuracy is the lower bound. The descent is on differences of logits, y_label − y_j, whose gradients do
    not
    vanish where a network is sure of itself as those of the cross-entropy do. The rival j is the likeliest other class,
    from the image and from a random point of the ball; then each of the two classes that are likeliest at the image.
    What fools at one radius fools at all larger.

    Args:
        model: Any network.
        images: (N, C, H, W) in [0, 1], floating point. Attacked images stay in that box.
        labels: (N,) integers.
        radii: Numbers ≥ 0, at least one.
        steps: Of each descent.
        seed: Of the random points, which have a generator of their own.

    Returns:
        The share of images still classified right, by radius.

    Raises:
        ConfigError: Foolbox is missing.
        InvalidType: An argument is of another type, dtype or device, or it is not certain that model(x) is what its
            pieces say.
        InvalidArgument: There are no images or radii, pixels lie outside [0, 1], labels are wrong, or it is not certain
            that model(x) is what its pieces say.
    """
    search_type, target_type = _foolbox()
    victim = detached_copy(model)
    _check(victim, images, labels)
    wanted, steps = arguments.radii(radii), arguments.count("steps", steps)
    number = values.whole(seed)
    if number is None or not 0 <= number < 2**63:
        raise InvalidArgument(f"`seed` must be an integer ≥ 0 and < 2^63, got {values.shown(seed)}")
    if not wanted:
        raise InvalidArgument("`radii` are none; give at least one")
    with proving(victim.device):
        images, labels = images.to(victim.dtype), labels.to(victim.device).long()
        target = target_type(victim, bounds=(0, 1), device=victim.device)
        search = search_type(steps, torch.Generator("cpu").manual_seed(number))
        found = _descend(victim, target, search, images, labels, sorted(set(wanted)))
    return AttackedAccuracy({r: found[r] for r in wanted}, search.zeros / max(search.gradients, 1))


def _descend(
    victim: Network, target: Any, search: Any, images: Tensor, labels: Tensor, radii: list[float]
) -> dict[float, float]:
    """{radius: share that no search fools}, for radii in increasing order."""
    logits = victim(images)
    standing = logits.argmax(1) == labels
    ranking = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
    found = {}
    for radius in radii:
        for rival, random_start in _SEARCHES if radius > 0 else ():
            left = standing.nonzero()[:, 0]
            if rival < logits.shape[1] and len(left):
                search.rivals = ranking[left, rival - 1] if rival else None
                search.random_start = random_start
                # Wider than the box is no wider.
                reach = min(radius, math.sqrt(images[0].numel()))
                _, _, fooled = search(target, images[left], labels[left], epsilons=reach)
                standing[left[fooled | search.fooled]] = False
        found[radius] = float(standing.double().mean())
    return found


def _check(victim: Network, images: Tensor, labels: Tensor) -> None:
    arguments.check_images(victim.in_shape, images)
    arguments.check_values(images, victim.device, "nothing can be attacked there")
    if not len(images):
        raise InvalidArgument("`images` are none; there is nothing to attack")
    if not 0 <= float(images.min()) <= float(images.max()) <= 1:
        raise InvalidArgument(
            f"`images` must lie in [0, 1], got {float(images.min()):.4g} … {float(images.max()):.4g}; attacked images "
            "stay in that box"
        )
    arguments.check_labels(victim.classes, labels, len(images))


def _foolbox() -> tuple[Any, Any]:
    """The attack, and what wraps a model for it. Raises ConfigError where Foolbox is missing."""
    try:
        from eagerpy.astensor import astensor
        from foolbox.attacks.projected_gradient_descent import L2ProjectedGradientDescentAttack
        from foolbox.models.pytorch import PyTorchModel
    except ImportError:
        raise ConfigError('attacks need the foolbox package: pip install "mondeq[attack]"') from None

    class MarginSearch(L2ProjectedGradientDescentAttack):
        """Descent on y_label − y_rival. It remembers who was fooled on the way, and how many gradients were 0."""

        def __init__(self, steps: int, generator: torch.Generator) -> None:
            super().__init__(steps=steps, rel_stepsize=2.5 / steps)
            self.generator = generator
            self.rivals: Tensor | None = None
            self.gradients = self.zeros = 0

        def get_loss_fn(self, model: Any, labels: Any) -> Callable[[Any], Any]:
            own: Tensor = labels.raw[:, None]
            self.fooled = torch.zeros_like(labels.raw, dtype=torch.bool)

            def loss(inputs: Any) -> Any:
                logits: Tensor = model(inputs).raw
                self.fooled |= logits.argmax(1) != own[:, 0]
                others = logits.scatter(1, own, -torch.inf)
                rival = others.amax(1) if self.rivals is None else others.gather(1, self.rivals[:, None])[:, 0]
                return astensor((rival - logits.gather(1, own)[:, 0]).sum())

            return loss

        def value_and_grad(self, loss_fn: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
            with torch.enable_grad():
                value, gradients = super().value_and_grad(loss_fn, x)
            lengths = gradients.raw.flatten(1).norm(dim=1)
            self.gradients += len(lengths)
            self.zeros += int((lengths == 0).sum())
            return value, gradients

        def normalize(self, gradients: Any, *, x: Any, bounds: Any) -> Any:
            raw: Tensor = gradients.raw
            # By the largest entry first, so that no square vanishes or overflows.
            size = (-1, *[1] * (raw.ndim - 1))
            raw = raw / raw.flatten(1).abs().amax(1).clamp_min(torch.finfo(raw.dtype).tiny).view(size)
            return astensor(raw / raw.flatten(1).norm(dim=1).clamp_min(0.5).view(size))

        def get_random_start(self, x0: Any, epsilon: float) -> Any:
            """Uniform in the ball, from the attack's own generator."""
            raw: Tensor = x0.raw
            direction = torch.randn(
                len(raw), raw[0].numel() + 2, generator=self.generator, dtype=torch.float64, device="cpu"
            )
            # The first d coordinates of a uniform point of the sphere in d + 2 dimensions are uniform in the ball.
            inside = torch.nn.functional.normalize(direction, dim=1)[:, :-2].reshape(raw.shape)
            return astensor(raw + (epsilon * inside).to(raw))

    return MarginSearch, PyTorchModel
