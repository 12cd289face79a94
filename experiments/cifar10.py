"""`python -m experiments.cifar10`: the networks of Winston & Kolter 2020 on CIFAR-10, without and with augmentation.

Published: single convolution 74.0, multi-tier 72.0 %; augmented and larger, 82.0 and 89.0 %. Their one-cycle schedule
is piecewise linear; ours is made of half cosines.
"""

from experiments.recipes import Preset, run

_PLAIN = {"schedule": "step", "epochs": "40", "batch-size": "128", "tol": "1e-2"}
_AUGMENTED = {"schedule": "one-cycle", "epochs": "65", "batch-size": "128", "tol": "1e-2", "shift": "4", "flip": ""}

PRESETS = (
    Preset("conv", {"model": "conv", "channels": "81", "lr": "1e-3", "decay-every": "25"} | _PLAIN, 74.0),
    Preset(
        "multiscale", {"model": "multiscale", "channels": "16 32 60", "lr": "1e-2", "decay-every": "10"} | _PLAIN, 72.0
    ),
    Preset("conv-augmented", {"model": "conv", "channels": "200", "lr": "1e-2"} | _AUGMENTED, 82.0),
    Preset("multiscale-augmented", {"model": "multiscale", "channels": "64 128 128", "lr": "5e-2"} | _AUGMENTED, 89.0),
)

if __name__ == "__main__":
    raise SystemExit(run("experiments.cifar10", "cifar10", PRESETS))
