"""Trainings that die: the n-th file operation of a run brings a signal, and the run is then resumed or started again.

`python -m tests.mondeq.dying FOLDER KILL all` tries every operation with SIGKILL, `… INT,KILL some 3 17` those two and
the critical ones with the two signals in turn. What is wrong is printed, one line each, and how many were tried of
how many. A process that has imported everything forks for each of them.
"""

import csv
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tb_logging import get_logger

import mondeq
from mondeq import cli, runs
from mondeq.cli import train
from mondeq.files import own
from mondeq.runs import CONFIG, WEIGHTS, read_tensors
from mondeq.training import Trainer, TrainingConfig, checkpoint
from tests.mondeq.zoo import same_weights, tiny_dataset, weights

Weights = dict[str, torch.Tensor]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# The audited operations that change a folder, and how many of their arguments are paths.
AUDITED = {
    "os.rename": 2, "os.remove": 1, "os.link": 2, "os.mkdir": 1, "os.rmdir": 1, "os.chmod": 1, "os.truncate": 1,
    "os.symlink": 2, "shutil.copyfile": 2,
}  # fmt: skip
# Between two files of which one follows from the other, and before anything is there that decides.
CRITICAL = {
    "os.rename checkpoint.safetensors": (0, -1), "os.rename model.safetensors": (0, -1), "os.rename history.csv": (-1,),
    "os.rename config.json": (0,), "os.rename metrics.json": (0,), "half model.safetensors": (-1,),
}  # fmt: skip


class Operations:
    """Counts the operations that write below a folder; at the n-th one, before it is done, sends this process a signal.

    Writing tensors is no operation of Python's: it counts three times, as not yet begun, half done and done.
    """

    def __init__(self, folder: Path, at: int, number: int) -> None:
        self.folder, self.at, self.number = os.path.realpath(folder), at, number
        self.names: list[str] = []
        self.active = True
        sys.addaudithook(self.audit)
        self.wrap(os, "fsync", lambda original, *a: (self.tick("fsync"), original(*a))[1])
        self.wrap(runs, "save_file", self.save_file)

    def wrap(self, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        setattr(owner, name, lambda *a, **k: replacement(original, *a, **k))

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            paths = arguments[:1] if arguments[2] & WRITING else ()
        elif event == "fcntl.flock":
            paths = (self.folder,)
        else:
            paths = arguments[: AUDITED.get(event, 0)]
        texts = [os.fspath(p) for p in paths if isinstance(p, str | os.PathLike)]
        if any(os.path.realpath(text).startswith(self.folder) for text in texts):
            self.tick(f"{event} {os.path.basename(texts[-1])}")

    def save_file(self, original: Callable[..., None], tensors: Any, path: Path, metadata: Any = None) -> None:
        name = path.name.split(".", 1)[1].rsplit(".", 2)[0]
        self.tick(f"no {name}")
        with self.paused():
            original(tensors, path, metadata)
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
        self.tick(f"half {name}")
        with self.paused():
            path.write_bytes(content)
        self.tick(f"whole {name}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.active = False
        yield
        self.active = True

    def tick(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self.at:
            os.kill(os.getpid(), self.number)


def command(work: Path, resume: bool) -> list[str]:
    """A run of two epochs with two batches each, and everything that can be asked for."""
    settings = ["--data", "digits", "--model", "dense", "--features", "4", "--epochs", "2", "--batch-size", "24"]
    settings += ["--shift", "1", "--seed", "3", "--data-dir", str(work.parent)]
    places = ["--out", str(work / "run"), "--json", str(work / "figures.json"), "--tensorboard", "--device", "cpu"]
    return ["train", *(["--resume"] if resume else settings), *places]


def forked(task: Callable[[], int]) -> tuple[int, str]:
    """What `task` does in a process of its own: how that ended (negative: by which signal), and its stderr."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        code, told = 99, StringIO()
        try:
            with redirect_stdout(StringIO()), redirect_stderr(told):
                code = task()
        except BaseException as error:
            told.write(repr(error))
        finally:
            os.write(write, told.getvalue()[-4000:].encode())
            os._exit(code)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), text


def go(work: Path, resume: bool) -> tuple[int, str]:
    return forked(lambda: cli.main(command(work, resume)))


def die(work: Path, at: int, number: int) -> tuple[int, str]:
    """A new run until operation `at`; for 0 a whole one, whose operations are then in a file beside `work`."""

    def task() -> int:
        operations = Operations(work, at, number)
        code = cli.main(command(work, resume=False))
        operations.active = False
        if at == 0:
            (work.parent / "operations.json").write_text(json.dumps(operations.names))
        return code

    return forked(task)


def history(run: Path) -> list[dict[str, str]]:
    """history.csv without the clock."""
    if not (run / "history.csv").exists():
        return []
    with (run / "history.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def epochs_of(run: Path) -> int:
    with safe_open(run / checkpoint.NAME, "pt") as file:
        return len(json.loads(file.metadata()["history"]))


def figures(path: Path) -> Any:
    """The figures without the clock."""
    content = json.loads(path.read_text())
    del content["train_seconds"]
    return content


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    log = EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    return {name: [(e.step, e.value) for e in log.Scalars(name)] for name in log.Tags()["scalars"]}


def differences(work: Path, whole: Path) -> Iterator[str]:
    """What of a finished run in `work` is not as in `whole`."""
    run, other = work / "run", whole / "run"
    for each in {p.name for p in run.iterdir()} ^ {p.name for p in other.iterdir()}:
        yield f"{each} is in one of the runs only"
    for each in sorted({p.name for p in work.iterdir()} - {"run", "figures.json"}):
        yield f"{each} was left"
    for name in (CONFIG, WEIGHTS, "training.png", "certified_accuracy.png", "local.json"):
        if (run / name).read_bytes() != (other / name).read_bytes():
            yield f"{name} differs"
    if not same_weights(read_tensors(run / checkpoint.NAME), read_tensors(other / checkpoint.NAME)):
        yield "the checkpoint differs"
    if history(run) != history(other):
        yield "history.csv differs"
    for place in ("run/metrics.json", "figures.json"):
        if figures(work / place) != figures(whole / place):
            yield f"{place} differs"
    if scalars(run) != scalars(other):
        yield f"TensorBoard shows {scalars(run)}"


def untruths(run: Path, told: str, after: list[Weights]) -> Iterator[str]:
    """What of an interrupted run's message is not so."""
    lines = told.splitlines()
    if len(lines) != 1 or "interrupted" not in lines[0]:
        yield f"it was told {told!r}"
    if found := re.search(r"holds the model after (\d) of 2 epochs", told):
        epochs = int(found[1])
        if not same_weights(mondeq.load(run).state_dict(), after[epochs]):
            yield f"it does not hold the model after {epochs} epochs"
        if epochs_of(run) != epochs or len(history(run)) != epochs:
            yield f"it goes on after {epochs_of(run)} epochs, shows {len(history(run))}, and tells of {epochs}"
    elif (run / WEIGHTS).exists() and "before" in told:
        yield f"there are weights, and it was told {told!r}"


def attempt(work: Path, whole: Path, at: int, number: int, after: list[Weights]) -> list[str]:
    """Die at operation `at`, then go on; what is wrong."""
    work.mkdir()
    run = work / "run"
    code, told = die(work, at, number)
    wrong = []
    if number == signal.SIGKILL:
        if code != -number:
            wrong.append(f"ended with {code}: {told}")
    else:
        if code not in (0, 130):
            wrong.append(f"ended with {code}: {told}")
        if code == 130:
            wrong += untruths(run, told, after)
    # As a user would: what has settings is resumed; every second time, what has no checkpoint is started again.
    begun = (run / checkpoint.NAME).exists()
    resume = begun or ((run / CONFIG).exists() and at % 2 == 0)
    code, told = go(work, resume)
    if code != 0 or told:
        wrong.append(f"{'resumed' if resume else 'started'} with {code}: {told}")
    if code == 0:
        wrong += differences(work, whole)
        if own(run):
            wrong.append(f"left {own(run)}")
    shutil.rmtree(work)
    return wrong


def trained(whole: Path, folder: Path) -> list[Weights]:
    """The weights before and after every epoch of the run in `whole`."""
    config = json.loads((whole / "run" / CONFIG).read_text())
    settings = TrainingConfig.from_dict(config["training"])
    torch.manual_seed(settings.seed)
    model = mondeq.Classifier(mondeq.ModelConfig.from_dict(config["preset"]))
    after = [weights(model)]
    trainer = Trainer(model, tiny_dataset(), settings, folder, torch.device("cpu"))
    trainer.on_epoch = lambda row: after.append(weights(model))
    trainer.run()
    return after


def critical(names: list[str]) -> set[int]:
    places = {wanted: [at for at, name in enumerate(names, start=1) if name == wanted] for wanted in CRITICAL}
    return {places[wanted][which] for wanted, several in CRITICAL.items() for which in several}


def main() -> None:
    torch.set_num_threads(1)
    get_logger().setLevel("ERROR")
    folder, choice = Path(sys.argv[1]), sys.argv[3]
    numbers = [signal.Signals[f"SIG{name}"] for name in sys.argv[2].split(",")]
    data = tiny_dataset()
    train.load_data = lambda name, data_dir, extra: data
    whole = folder / "whole"
    for work in (folder / "warm", whole):
        work.mkdir()
    with redirect_stdout(StringIO()):
        cli.main(command(folder / "warm", resume=False))  # here, so that no child has to do what is done once
    code, told = die(whole, 0, 0)
    if code or told:
        raise SystemExit(f"the whole run ended with {code}: {told}")
    names = json.loads((folder / "operations.json").read_text())
    after = trained(whole, folder / "again")
    others = {1 + int(text) % len(names) for text in sys.argv[4:]}
    points = sorted(others | critical(names)) if choice == "some" else range(1, len(names) + 1)
    for turn, at in enumerate(points):
        number = numbers[turn % len(numbers)]
        for fault in attempt(folder / "try", whole, at, number, after):
            print(f"{number.name} at operation {at}, {names[at - 1]}: {fault}", flush=True)
    print(f"{len(points)} of {len(names)} operations tried")


if __name__ == "__main__":
    main()
