"""Certificates: for every image a radius within which the exact network's prediction is proved constant.

A certificate is a method, one file each. It is prepared once for a network, and then certifies any number of images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mondeq import arguments, scrutiny
from mondeq.bounds import Bound, Chain, Method, lipschitz_bounds
from mondeq.modes import proving
from mondeq.network import Network, exact_copy
from mondeq.pieces import Logits
from mondeq.registry import Registry
from splitting import InvalidArgument, InvalidType


@dataclass(frozen=True, eq=False)
class Report:
    """What `certify` found, one entry per sample; radii in the norm that was asked for, pixels in [0, 1].

    Args:
        radius: No image closer than this has another prediction; 0 where nothing is certified.
        correct: Whether the prediction equals the label.
        prediction: The computed class; that of the exact network where radius > 0.
        error_bound: A proved bound on the error of what the last piece was given: of solvers and rounding.
        bounds: The Lipschitz bounds used.
        norm: The name of the norm of the radii.
        methods: The certificates that were tried, by name.
        method: Which of `methods` gave the radius.
    """

    radius: Tensor
    correct: Tensor
    prediction: Tensor
    error_bound: Tensor
    bounds: dict[str, Bound]
    norm: str
    methods: tuple[str, ...]
    method: Tensor

    @property
    def accuracy(self) -> float:
        """Share of samples predicted correctly."""
        return _mean(self.correct)

    def certified_accuracy(self, radii: Iterable[float]) -> dict[float, float]:
        """The share of samples that are right and proved to stay so for every perturbation of norm ≤ r.

        Where nothing is proved (radius 0) nothing is counted, at r = 0 either: that r asks for the prediction of the
        exact
        network itself.

        Args:
            radii: Numbers r ≥ 0.

        Returns:
            {r: share}.

        Raises:
            InvalidType: They are no list of numbers.
            InvalidArgument: One of them is none, or negative.
        """
        proved = self.correct & (self.radius > 0)
        return {r: _mean(proved & (self.radius >= r)) for r in arguments.radii(radii)}


class Prepared(ABC):
    """A certificate that has been prepared for a network."""

    @abstractmethod
    def radius(self, images: Tensor, logits: Logits) -> Tensor:
        """The radius of each image.

        Args:
            images: (batch, *in_shape) float64.
            logits: Those of the network, with what they may be wrong by.

        Returns:
            The radii, (batch,) ≥ 0; NaN where nothing is known.
        """


class Certificate(Method, ABC):
    """A way to certify predictions. One file each; it enrols in `CERTIFICATES`.

    Attributes:
        routine: Whether it is tried unasked; one that takes long is not.
    """

    routine: ClassVar[bool] = True

    @abstractmethod
    def prepare(self, chain: Chain, bounds: Mapping[str, Bound]) -> Prepared:
        """What all images share, computed once.

        Args:
            chain: What is proved of the network, which this method suits.
            bounds: Those of `lipschitz_bounds`, proved for this network.

        Returns:
            The certificate, prepared for the network.

        Raises:
            InvalidType: `bounds` are no bounds.
            InvalidArgument: They belong to another network or norm.
        """


CERTIFICATES: Registry[Certificate] = Registry("certificate")
"""The ways to certify predictions by the names that reports have."""


class Certifier:
    """All certificates that suit a network, prepared once for its weights as they are.

    Args:
        model: The network. What is certified is a copy: later changes of `model` change nothing here, and `certify`
            refuses this object for it then.
        norm: That of the radii, a name in NORMS: "l2", "linf".
        bounds: Those of `lipschitz_bounds(model, norm=norm)`, where they are at hand.
        extra: Certificates that are tried besides, of those that take long: names in CERTIFICATES, such as "local".

    Raises:
        ConfigError: There is no such norm, or no such certificate.
        InvalidType: It is not certain that model(x) is what its pieces say, or `bounds` are no bounds.
        InvalidArgument: A piece has no proved constant (the message names it), it is not certain that model(x) is what
            its pieces say, `bounds` belong to other weights, or an extra certificate does not suit the network.
    """

    def __init__(
        self,
        model: Network,
        norm: str = "l2",
        bounds: Mapping[str, Bound] | None = None,
        *,
        extra: Sequence[str] = (),
    ) -> None:
        self.chain = Chain.of(model, norm)
        self.chain.require_logits()
        given = lipschitz_bounds(model, norm=norm, chain=self.chain) if bounds is None else bounds
        with proving(self.chain.exact.device):
            asked = {name: CERTIFICATES[name]() for name in extra}
            for name, kind in asked.items():
                if (reason := kind.unsuited(self.chain)) is not None:
                    raise InvalidArgument(f"the certificate {name!r} does not suit this network: {reason}")
            kinds = {name: kind() for name, kind in CERTIFICATES.items() if kind.routine} | asked
            self._prepared = {
                name: kind.prepare(self.chain, given)
                for name, kind in kinds.items()
                if kind.unsuited(self.chain) is None
            }
        self.bounds, self.methods = dict(given), tuple(self._prepared)

    def check_owner(self, model: Network) -> None:
        """Raise unless this was prepared for the weights that a network has now.

        Args:
            model: The network.

        Raises:
            InvalidType: model(x) may not be what its pieces say.
            InvalidArgument: The same, or this was prepared for other weights.
        """
        if scrutiny.fingerprint(exact_copy(model)) != self.chain.owner:
            raise InvalidArgument("`certifier` was prepared for other weights; prepare one: mondeq.Certifier(model)")

    def certify(self, images: Tensor, labels: Tensor, *, batch_size: int | None = None) -> Report:
        """Radii within which the exact network's prediction is constant, as `mondeq.certify` proves them.

        Args:
            images: (N, *in_shape) in [0, 1], floating point.
            labels: (N,) integers.
            batch_size: Images at a time; by default at most 500, fewer where their states are large.

        Returns:
            The report.

        Raises:
            InvalidType: Images or labels are no tensors, or images are elsewhere than the weights.
            InvalidArgument: Images are NaN or inf or have wrong shapes, or labels are out of range.
        """
        exact = self.chain.exact
        _check(exact, images, labels)
        batch_size = self.chain.at_once if batch_size is None else arguments.count("batch_size", batch_size)
        with proving(exact.device):
            parts = [self._radii(chunk.double()) for chunk in images.split(batch_size)]
            radius, method, prediction, error = (torch.cat(column) for column in zip(*parts, strict=True))
        correct = prediction == labels.to(prediction.device)
        return Report(radius, correct, prediction, error, self.bounds, self.chain.norm, self.methods, method)

    def _radii(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best radius, the number of its method, prediction and error of float64 images."""
        ball = self.chain.enclose(images)
        logits = self.chain.stages[-1].logits(ball)
        found = [prepared.radius(images, logits) for prepared in self._prepared.values()]
        # NaN (an infinite slack over an infinite constant, say) certifies nothing.
        radii = torch.stack(found).nan_to_num(nan=0.0, posinf=torch.inf).clamp_min(0)
        best, method = radii.max(0)
        return best, method, logits.value.argmax(1), ball.radius


def certify(
    model: Network,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "l2",
    batch_size: int | None = None,
    bounds: Mapping[str, Bound] | None = None,
    extra: Sequence[str] = (),
    certifier: Certifier | None = None,
) -> Report:
    """Prove radii within which the exact network's prediction is constant, by the best of all certificates that suit.

    Everything is computed in float64. Preparing a network takes longer than certifying an image: where images come in
    several calls, prepare `mondeq.Certifier(model)` once and hand it over.

    Args:
        model: A network of pieces with proved constants.
        images: (N, *in_shape) in [0, 1], floating point.
        labels: (N,) integers.
        norm: That of the radii, a name in NORMS: "l2", "linf".
        batch_size: Images at a time; by default at most 500, fewer where their states are large.
        bounds: Those of `lipschitz_bounds(model, norm=norm)` for its present weights, where they are at hand.
        extra: Certificates that are tried besides, of those that take long: names in CERTIFICATES, such as "local".
        certifier: `Certifier(model, norm)` for its present weights, where it is at hand; what it tries is what counts.

    Returns:
        The report.

    Raises:
        ConfigError: There is no such norm, or no such certificate.
        InvalidType: An argument is of another type, images are elsewhere than the weights, or it is not certain that
            model(x) is the network that its weights say: overridden methods, subclasses, wrappers.
        InvalidArgument: Images are NaN or inf or have wrong shapes, labels are out of range, bounds or certifier belong
            to other weights, a piece has no proved constant, or it is not certain that model(x) is the network that its
            weights say: hooks, parametrizations, an activation steeper than 1.
    """
    if certifier is None:
        certifier = Certifier(model, norm, bounds, extra=extra)
    elif not isinstance(certifier, Certifier):
        raise InvalidType(f"`certifier` must be a mondeq.Certifier, got {type(certifier).__name__}")
    else:
        certifier.check_owner(model)
        if certifier.chain.norm != norm:
            raise InvalidArgument(f"`certifier` was prepared for the norm {certifier.chain.norm!r}, not for {norm!r}")
    return certifier.certify(images, labels, batch_size=batch_size)


def _mean(mask: Tensor) -> float:
    return float(mask.double().mean()) if mask.numel() else 0.0


def _check(model: Network, images: Tensor, labels: Tensor) -> None:
    if isinstance(images, Tensor) and tuple(images.shape[1:]) != tuple(model.in_shape):
        shape = ", ".join(map(str, model.in_shape))
        raise InvalidArgument(f"`images` must have shape (N, {shape}), got {tuple(images.shape)}")
    arguments.check_images(model.in_shape, images)
    arguments.check_values(images, model.device, "nothing can be certified for them")
    arguments.check_labels(model.classes, labels, len(images))
