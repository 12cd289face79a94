"""The certified preset: a stack of reflected layers at two resolutions or three, 1-Lipschitz for every weight.

Pixel unshuffling and zero channels are isometries, reflected layers nearly so; a last layer with rows of length 1 turns
distances into gaps of logits, with a constant for every pair of classes. Nothing is estimated on the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from mondeq.errors import ConfigError
from mondeq.parameterizations import ReflectedConv2d, ReflectedDense
from mondeq.pieces import Normalise, NormalisedLinear, PadChannels, ResidualLayer
from mondeq.presets.base import PRESETS, Images, Preset
from mondeq.settings import POSITIVE, Several, Whole, setting


@PRESETS.enrol("certified")
@dataclass(frozen=True)
class CertifiedPreset(Preset):
    """Reflected convolutions after each halving of the resolution, reflected dense layers, a normalised head.

    Pixels go in less their mean, and as long as they are: the constants are in pixels.

    Args:
        hidden: Units per position of the reflected convolutions, after each halving of the image.
        depth: Reflected convolutions at every resolution.
        width: Channels after the first halving; zeros are added where there are fewer.
        dense: Units of reflected dense layers at the end.
        kernel_size: k, the side of the convolutions, odd; smaller where the halved image is.
        m: Strong monotonicity of every layer, > 0.
    """

    hidden: tuple[int, ...] = setting(
        Several(Whole(1), least=1), (32, 64), help="certified: units per position after each halving of the image"
    )
    depth: int = setting(Whole(1), 1, help="certified: reflected layers at every resolution")
    width: int = setting(Whole(1), 32, help="certified: channels after the first halving (zeros are added)")
    dense: tuple[int, ...] = setting(
        Several(Whole(1)), (), help="certified: units of reflected dense layers at the end"
    )
    kernel_size: int = setting(Whole(1), 5, help="side of the convolutions, odd (default 3; certified: 5)")
    m: float = setting(POSITIVE, 0.1, help="strong monotonicity (default 1)")

    # Muon was worth three points at 36/255 after one epoch. The learning rate fits the length that U starts with, and
    # twice as much costs half more time; 36/255 is trained for with 1.4 times that radius.
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 14, "optimizer": "muon", "lr": 6e-3, "batch_size": 128, "tol": 5e-2, "shift": 2, "flip": True,
        "average": "ema", "radius_factor": 1.4, "logit_scale": 3.0,
    }  # fmt: skip
    certified_recipe: ClassVar[dict[str, Any]] = recipe
    digits_recipe: ClassVar[dict[str, Any]] = {"hidden": (16,), "width": 8, "shift": 0, "epochs": 10}
    normalises: ClassVar[bool] = False

    def pieces(self, images: Images) -> dict[str, nn.Module]:
        channels, height, width = images.image_shape
        factor = 2 ** len(self.hidden)
        if height % factor or width % factor:
            raise ConfigError(
                f"`hidden` halves images {len(self.hidden)} times, and {height}×{width} pixels cannot be; use fewer"
            )
        # Centred pixels: their mean is most of an image's length, and says nothing of it.
        pieces: dict[str, nn.Module] = {"normalise": Normalise(images.mean, images.std)}
        for level, hidden in enumerate(self.hidden):
            channels, height, width = 4 * channels, height // 2, width // 2
            pieces[f"unshuffle{level}"] = nn.PixelUnshuffle(2)
            if level == 0 and channels < self.width:
                pieces["pad"] = PadChannels(self.width)
                channels = self.width
            largest_odd = min(height, width) - 1 + min(height, width) % 2
            side = min(self.kernel_size, largest_odd)
            for number in range(self.depth):
                linear = ReflectedConv2d(channels, hidden, (height, width), side, self.m)
                pieces[f"conv{level}_{number}"] = ResidualLayer(linear, **self.options())
        pieces["flatten"] = nn.Flatten()
        entries = channels * height * width
        for number, hidden in enumerate(self.dense):
            dense = ReflectedDense(entries, hidden, self.m)
            pieces[f"dense{number}"] = ResidualLayer(dense, **self.options())
        pieces["head"] = NormalisedLinear(entries, images.classes)
        return pieces

    def largest(self, images: Images) -> int:
        entries = max(math.prod(images.image_shape), self.width * images.pixels // images.image_shape[0] // 4)
        widest = max(self.hidden)
        return max(
            entries * max(images.classes, *self.dense, 1),
            widest * 4 ** len(self.hidden) * self.width * self.kernel_size**2,
        )
