"""`python -m experiments.svhn`: the networks of Winston & Kolter 2020 on SVHN.

Published: single convolution 88.7, multi-tier 92.4 %.
"""

from experiments.recipes import Preset, run

_STEP = {"lr": "1e-3", "schedule": "step", "epochs": "40", "batch-size": "128", "tol": "1e-2", "weight-norm": ""}

PRESETS = (
    Preset("conv", {"model": "conv", "channels": "81", "decay-every": "25"} | _STEP, 88.7),
    Preset("multiscale", {"model": "multiscale", "channels": "16 32 60", "decay-every": "10"} | _STEP, 92.4),
)

if __name__ == "__main__":
    raise SystemExit(run("experiments.svhn", "svhn", PRESETS))
