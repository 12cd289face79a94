"""`python -m experiments.mnist`: the three networks of Winston & Kolter 2020 on MNIST, and the certified ones of this
package. Published: dense 98.1, single convolution 99.1, multi-tier 99.0 %. The `-short` presets train the same
convolutional networks for four epochs."""

from experiments.recipes import Preset, run

_COMMON = {"batch-size": "128", "tol": "1e-2"}
_STEP = {"lr": "1e-3", "schedule": "step", "decay-every": "10", "epochs": "40"} | _COMMON
_SHORT = {"lr": "1e-2", "schedule": "one-cycle", "epochs": "4", "weight-norm": ""} | _COMMON
_CONV = {"model": "conv", "channels": "54"}
_TIERS = {"model": "multiscale", "channels": "16 32 32"}

PRESETS = (
    Preset("dense", {"model": "dense", "features": "87"} | _STEP, 98.1),
    Preset("conv", _CONV | {"weight-norm": ""} | _STEP, 99.1),
    Preset("multiscale", _TIERS | {"weight-norm": ""} | _STEP, 99.0),
    Preset("conv-short", _CONV | _SHORT, 99.1),
    Preset("multiscale-short", _TIERS | _SHORT, 99.0),
    Preset("lipschitz-0.4", {"model": "lipschitz", "radius": "0.4"}),
    Preset("lipschitz-2.0", {"model": "lipschitz", "radius": "2.0"}),
)

if __name__ == "__main__":
    raise SystemExit(run("experiments.mnist", "mnist", PRESETS))
