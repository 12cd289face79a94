"""`python -m experiments.cifar10`: the networks of Winston & Kolter 2020 on CIFAR-10, without and with augmentation.

Published: single convolution 74.0, multi-tier 72.0 %; augmented and larger, 82.0 and 89.0 %. Their one-cycle schedule
is piecewise linear; ours is made of half cosines. The `-short` presets run for five epochs, for a computer without an
accelerator: the same multi-tier network, and a single convolution of 32 channels.
"""

from experiments.recipes import Preset, run

_COMMON = {"batch-size": "128", "tol": "1e-2", "weight-norm": ""}
_PLAIN = {"schedule": "step", "epochs": "40"} | _COMMON
_SHORT = _COMMON | {"lr": "1e-2", "schedule": "one-cycle", "epochs": "5", "batch-size": "256"}
_AUGMENTED = {"schedule": "one-cycle", "epochs": "65", "shift": "4", "flip": ""} | _COMMON
_TIERS = {"model": "multiscale", "channels": "16 32 60"}

PRESETS = (
    Preset("conv", {"model": "conv", "channels": "81", "lr": "1e-3", "decay-every": "25"} | _PLAIN, 74.0),
    Preset("multiscale", _TIERS | {"lr": "1e-2", "decay-every": "10"} | _PLAIN, 72.0),
    Preset("conv-augmented", {"model": "conv", "channels": "200", "lr": "1e-2"} | _AUGMENTED, 82.0),
    Preset("multiscale-augmented", {"model": "multiscale", "channels": "64 128 128", "lr": "5e-2"} | _AUGMENTED, 89.0),
    Preset("conv-short", {"model": "conv", "channels": "32"} | _SHORT),
    Preset("multiscale-short", _TIERS | _SHORT, 72.0),
)

if __name__ == "__main__":
    raise SystemExit(run("experiments.cifar10", "cifar10", PRESETS))
