"""Two processes do together what one does alone: same weights, same certificates, and only the first writes."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import mondeq
from mondeq import cli, distributed
from mondeq.errors import ConfigError
from mondeq.runs import read_tensors
from mondeq.training import checkpoint
from tests.mondeq.distributed_worker import work
from tests.mondeq.zoo import KINDS

ROOT = Path(__file__).parents[2]
each_kind = pytest.mark.parametrize("kind", KINDS)


@dataclass(frozen=True)
class Runs:
    """Where the two processes worked, what they printed, and where one process did the same."""

    together: Path
    output: tuple[str, str]
    alone: Path


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    together, alone = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    first, *others = map(str, free_ports(3))
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": first, "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.mondeq.distributed_worker", together, *others],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        finished = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(err for _, err in finished)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    work(alone, torch.device("cpu"))
    torch.set_num_threads(threads)
    return Runs(together, (finished[0][0], finished[1][0]), alone)


@each_kind
def test_training_gives_the_weights_of_one_process_with_the_joint_batch(kind: str, runs: Runs) -> None:
    expected = read_tensors(runs.alone / kind / "weights.safetensors")
    both = [read_tensors(runs.together / f"rank{rank}" / kind / "weights.safetensors") for rank in range(2)]
    for name, tensor in expected.items():
        torch.testing.assert_close(both[0][name], tensor, rtol=1e-3, atol=1e-5)
        assert torch.equal(both[0][name], both[1][name]), name


@each_kind
def test_both_processes_know_the_whole_history(kind: str, runs: Runs) -> None:
    histories = [
        json.loads((folder / kind / "seen.json").read_text())
        for folder in (runs.alone, runs.together / "rank0", runs.together / "rank1")
    ]
    assert [h["told"] for h in histories] == [2, 2, 0]
    for name in ("epoch", "lr", "loss", "train_accuracy", "test_accuracy", "certified_estimate", "forward_unconverged"):
        alone, first, second = ([row[name] for row in h["history"]] for h in histories)
        assert first == second, name
        assert first == pytest.approx(alone, rel=1e-3), name
    for name in ("forward_steps", "backward_steps"):
        alone, first, second = ([row[name] for row in h["history"]] for h in histories)
        assert first == second
        assert first == pytest.approx(alone, rel=0.05)


@each_kind
def test_certification_shared_is_certification_alone(kind: str, runs: Runs) -> None:
    """All 21 images in their order, on both processes."""
    expected = read_tensors(runs.alone / kind / "report.safetensors")
    assert expected["radius"].shape == (21,)
    for rank in range(2):
        found = read_tensors(runs.together / f"rank{rank}" / kind / "report.safetensors")
        assert torch.equal(found["prediction"], expected["prediction"])
        assert torch.equal(found["correct"], expected["correct"])
        torch.testing.assert_close(found["radius"], expected["radius"], rtol=1e-7, atol=1e-9)


@each_kind
def test_only_the_first_process_writes(kind: str, runs: Runs) -> None:
    assert {p.name for p in (runs.together / "rank0" / kind / "run").iterdir()} == {
        checkpoint.NAME,
        "model.safetensors",
    }
    assert list((runs.together / "rank1" / kind / "run").iterdir()) == []


def test_collectives(runs: Runs) -> None:
    for rank in range(2):
        rows, total = json.loads((runs.together / f"rank{rank}" / "collectives.json").read_text())
        assert rows == [0, 1, 1]
        assert total == [2.0, 1.0]
    assert json.loads((runs.alone / "collectives.json").read_text()) == [[0], [1.0, 0.0]]


def test_the_command_line_prints_and_writes_once(runs: Runs) -> None:
    first, second = runs.output
    assert "certified" in first
    assert second == ""
    files = {p.name for p in (runs.together / "cli").iterdir()}
    assert {"config.json", "model.safetensors", "metrics.json", "history.csv", "certified_accuracy.png"} <= files
    assert not [name for name in files if name.startswith(".")]


def test_metrics_of_two_processes_are_those_of_one(runs: Runs, tmp_path: Path) -> None:
    """The run that two processes trained and certified, certified again by one."""
    metrics = json.loads((runs.together / "cli" / "metrics.json").read_text())
    assert json.loads((runs.together / "cli.json").read_text()) == metrics
    again = tmp_path / "again.json"
    assert cli.main(["certify", str(runs.together / "cli"), "--json", str(again), "--device", "cpu"]) == 0
    found = json.loads(again.read_text())
    for name in ("test_accuracy", "certified_accuracy", "samples", "lipschitz"):
        assert found[name] == metrics[name]
    model = mondeq.load(runs.together / "cli")
    assert isinstance(model.get_submodule("layer"), mondeq.ReadoutLayer)


def test_a_table_of_two_processes_is_that_of_one(runs: Runs, tmp_path: Path) -> None:
    """Every image once, in order, and where they can be attacked the first eleven are."""
    again = tmp_path / "table.csv"
    options = ("--limit", "21", "--table", str(again), "--device", "cpu")
    assert cli.main(["certify", str(runs.together / "cli"), *options]) == 0
    both = []
    for path in (runs.together / "table.csv", again):
        with path.open(newline="") as file:
            both.append(list(csv.DictReader(file)))
    for found, expected in zip(*both, strict=True):
        assert float(found["radius"]) == pytest.approx(float(expected["radius"]), rel=1e-7, abs=1e-9)
        assert all(found[name] == expected[name] for name in ("index", "label", "prediction", "correct", "method"))
    if "attack" in both[0][0]:
        assert all(float(row["attacked_distance"]) > float(row["radius"]) for row in both[0][:11])
        assert {row["attack"] for row in both[0][11:]} == {""}
    assert not (runs.together / "table.csv.partial").exists()


def test_a_run_of_two_processes_is_resumed_by_one(runs: Runs, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs.together / "cli", tmp_path / "run"))
    (run / "history.csv").unlink()
    assert cli.main(["train", "--resume", "--out", str(run), "--device", "cpu"]) == 0
    for name in ("history.csv", "model.safetensors", "training.png"):
        assert (run / name).read_bytes() == (runs.together / "cli" / name).read_bytes()


# -- alone ---------------------------------------------------------------------------------------------------------


def test_alone_everything_is_a_no_op() -> None:
    with distributed.session("cpu") as device:
        assert device == torch.device("cpu")
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        values = torch.arange(3)
        assert distributed.gather(values) is values
        assert distributed.total(values) is values
        linear = torch.nn.Linear(1, 1)
        assert distributed.parallel(linear) is linear
        distributed.wait()


@pytest.mark.parametrize("name", ["banana", "cpu:x", ""])
def test_unknown_devices_are_refused(name: str) -> None:
    with (
        pytest.raises(ConfigError, match=r"unknown device .*; use auto, cpu, cuda or cuda:N"),
        distributed.session(name),
    ):
        pass


@pytest.mark.parametrize("name", ["mps", "meta", "xpu"])
def test_devices_that_are_not_offered_are_refused(name: str) -> None:
    """torch knows these names, but nothing here was made for them."""
    with pytest.raises(ConfigError, match="use auto, cpu, cuda or cuda:N"), distributed.session(name):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_where_there_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"finds no CUDA device here; use --device cpu"), distributed.session(name):
        pass


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_too_many_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not exist"), distributed.session("cuda:99"):
        pass
