"""What one of several processes does in test_distributed.py; run as a script, with torchrun's environment."""

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from mondeq import Certifier, cli, distributed
from mondeq.attacks import nearest_adversarials
from mondeq.cli import attacked
from mondeq.cli.evaluation import certify_split
from mondeq.runs import write_tensors
from mondeq.training import Trainer, TrainingConfig
from tests.mondeq.zoo import KINDS, model_for, tiny_dataset

CLI = ["--data", "digits", "--model", "lipschitz", "--features", "8", "--epochs", "2", "--batch-size", "256"]


def work(folder: Path, device: torch.device) -> None:
    """Train and certify a model of each kind; leave what this process saw in `folder`."""
    # 48 training images in joint batches of 16; 21 test images, which two processes cannot share evenly.
    dataset = tiny_dataset(train=48, test=21)
    for kind in KINDS:
        out = folder / kind / "run"
        out.mkdir(parents=True)
        told = []
        config = TrainingConfig("tiny", epochs=2, batch_size=16, lr=1e-2, radius=0.05, clip=1.0)
        model = model_for(dataset, kind)
        report = certify_split(Certifier(model.to(device)), dataset.test)
        trainer = Trainer(model, dataset, config, out, device, on_epoch=told.append)
        trainer.run()
        columns = {name: getattr(report, name) for name in ("radius", "correct", "prediction", "error_bound")}
        write_tensors(folder / kind / "report.safetensors", columns)
        write_tensors(folder / kind / "weights.safetensors", model.state_dict())
        seen = {"history": [asdict(row) for row in trainer.history], "told": len(told)}
        (folder / kind / "seen.json").write_text(json.dumps(seen))
    rank = distributed.rank()
    rows = distributed.gather(torch.full((rank + 1,), rank))
    total = distributed.total(torch.tensor([1.0, rank]))
    (folder / "collectives.json").write_text(json.dumps([rows.tolist(), total.tolist()]))


def main() -> int:
    torch.set_num_threads(1)
    out, *ports = Path(sys.argv[1]), *sys.argv[2:]
    with distributed.session("cpu") as device:
        folder = out / f"rank{distributed.rank()}"
        work(folder, device)
    run = str(out / "cli")
    train = ["train", *CLI, "--out", run, "--json", str(out / "cli.json"), "--device", "cpu"]
    attacked.nearest_adversarials = partial(nearest_adversarials, steps=2)
    attack = ["--attack", "--attack-samples", "11", "--radii", "0.2"] if find_spec("foolbox") else []
    certify = ["certify", run, *attack, "--limit", "21", "--table", str(out / "table.csv"), "--device", "cpu"]
    codes = []
    for port, command in zip(ports, (train, certify), strict=True):
        os.environ["MASTER_PORT"] = port
        codes.append(cli.main(command))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
