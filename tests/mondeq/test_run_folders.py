"""A run folder has one writer, holds nothing of the machine it was made on, and is never lost to a full disk."""

import contextlib
import csv
import errno
import json
import math
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import mondeq
from mondeq import files, plots
from mondeq.certificates import Report
from mondeq.data import Dataset
from mondeq.errors import ConfigError, RunError
from mondeq.files import clear_temporary, own, replace_files, sole_writer, text_writer, write_text
from mondeq.runs import CONFIG, WEIGHTS, read_tensors
from mondeq.training import Epoch, Trainer, TrainingConfig, checkpoint
from mondeq.training.progress import write_history
from tests.mondeq.test_cli import Call
from tests.mondeq.zoo import classifier, model_for, same_weights, tiny_dataset, weights

TRAIN = ("train", "--data", "digits", "--model", "dense", "--features", 4, "--epochs", 1, "--batch-size", 512)
CPU = torch.device("cpu")
HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 4711 on elsewhere")
file.flush()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return tiny_dataset()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch. Not to be changed by a test."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with contextlib.redirect_stdout(None):
        assert mondeq.cli.main([str(a) for a in (*TRAIN, "--out", run)]) == 0
    return run


@contextlib.contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the folder's lock."""
    command = [sys.executable, "-c", HOLDER, str(folder / ".mondeq.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


# -- one writer ----------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_until_its_writer_is_dead(
    call: Call,
    data: Dataset,
    tmp_path: Path,
    finished: Path,
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    (tmp_path / "new").mkdir()
    line = "is being written to by process 4711 on elsewhere; wait until it has ended, or choose another folder"
    with held(run) as process, held(tmp_path / "new"):
        call.fails(1, line, *TRAIN, "--out", run)
        call.fails(1, line, "train", "--resume", "--out", run)
        call.fails(1, line, *TRAIN, "--out", tmp_path / "new")
        with pytest.raises(RunError, match=line):
            mondeq.save(classifier(), run)
        with pytest.raises(RunError, match=line):
            Trainer(model_for(data), data, TrainingConfig("tiny"), run, CPU).run()
        assert call("info", run).code == 0  # reading is nobody's business
        process.kill()
        process.wait()
        assert own(run) == {".mondeq.lock"}
        assert call("train", "--resume", "--out", run).code == 0
    assert {p.name for p in run.iterdir()} == before.keys()
    assert (run / WEIGHTS).read_bytes() == before[WEIGHTS]


def test_the_lock_says_who_holds_it_and_is_gone_afterwards(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "run"):
        text = (tmp_path / "run" / ".mondeq.lock").read_text()
        assert text == f"process {os.getpid()} on {socket.gethostname()}"
        with sole_writer(tmp_path / "run" / ".." / "run"):  # the same, within itself
            pass
        assert own(tmp_path / "run") == {".mondeq.lock"}
        write_text(tmp_path / "run" / "kept", "")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["kept"]


def test_two_threads_are_two_writers(tmp_path: Path) -> None:
    failures: list[str] = []

    def second() -> None:
        try:
            with sole_writer(tmp_path):
                failures.append("both wrote")
        except RunError as error:
            failures.append(str(error))

    with sole_writer(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(failures) == 1
    assert f"process {os.getpid()} on" in failures[0]


@pytest.mark.parametrize("system", ["no fcntl", errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_the_file_itself_is_one(
    system: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        assert isinstance(system, int)
        raise OSError(system, "no locks")

    if isinstance(system, str):
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "flock", flock)
    with sole_writer(tmp_path):
        write_text(tmp_path / "kept", "")
    assert own(tmp_path) == set()
    (tmp_path / ".mondeq.lock").write_text("process 4711 on elsewhere")
    with (
        pytest.raises(RunError, match=r"by process 4711 on elsewhere; if that was killed, delete \.mondeq\.lock there"),
        sole_writer(tmp_path),
    ):
        pass
    assert own(tmp_path) == {".mondeq.lock"}


def test_a_lock_that_was_released_while_it_was_opened_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder removed the file between our opening and our locking it: a third process may hold a new one."""
    import fcntl

    original, removed = fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        if not removed:
            (tmp_path / ".mondeq.lock").unlink()
            removed.append(True)
        original(file, how)

    (tmp_path / ".mondeq.lock").write_text("")
    monkeypatch.setattr(fcntl, "flock", flock)
    with sole_writer(tmp_path), held_by_us(tmp_path):
        pass


@contextlib.contextmanager
def held_by_us(folder: Path) -> Iterator[None]:
    assert f"process {os.getpid()}" in (folder / ".mondeq.lock").read_text()
    yield


def test_leftovers_are_removed_and_what_others_made_is_not(tmp_path: Path) -> None:
    theirs = [".history.csv.swp", ".x.download.partial", ".config.json.original", ".config.json.before", "a.mondeq"]
    ours = [".history.csv.abcd_123.mondeq", ".a.b.00000000.mondeq"]
    for name in (*theirs, *ours):
        (tmp_path / name).write_text(name)
    (tmp_path / ".folder.abcdefgh.mondeq").mkdir()
    clear_temporary(tmp_path, "a.b")
    assert not (tmp_path / ours[1]).exists()
    assert (tmp_path / ours[0]).exists()
    with sole_writer(tmp_path):
        mondeq.save(classifier(), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*theirs, ".folder.abcdefgh.mondeq", CONFIG, WEIGHTS}


def test_folders_made_for_nothing_are_removed(call: Call, tmp_path: Path) -> None:
    call.fails(1, "is a setting of", *TRAIN, "--gamma", 2, "--out", tmp_path / "deep" / "run")
    call.fails(1, "does not exist", "train", "--resume", "--out", tmp_path / "deep" / "run")
    assert list(tmp_path.iterdir()) == []


# -- starting again ------------------------------------------------------------------------------------------------


def test_settings_without_a_checkpoint_start_again_if_they_are_the_same(
    call: Call,
    finished: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished / CONFIG, run)
    call.fails(1, "has other settings, not trained yet; choose another --out", *TRAIN, "--seed", 1, "--out", run)
    assert (run / CONFIG).read_bytes() == (finished / CONFIG).read_bytes()
    (run / "thesis.txt").write_text("precious")
    call.fails(1, "exists and is not an empty folder", *TRAIN, "--out", run)
    (run / "thesis.txt").unlink()
    assert call(*TRAIN, "--out", run).code == 0
    assert (run / WEIGHTS).read_bytes() == (finished / WEIGHTS).read_bytes()
    call.fails(1, "exists and is not an empty folder", *TRAIN, "--out", run)


def test_what_a_finished_run_lost_comes_back(call: Call, finished: Path, tmp_path: Path) -> None:
    """A second time too; what the user put there stays."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "notes.txt").write_text("mine")
    for missing in ([WEIGHTS, "training.png"], ["history.csv", "metrics.json", "certified_accuracy.png"]):
        for name in missing:
            (run / name).unlink()
        assert call("train", "--resume", "--out", run).code == 0
    assert {p.name for p in run.iterdir()} == {p.name for p in finished.iterdir()} | {"notes.txt"}
    for name in (WEIGHTS, checkpoint.NAME, "history.csv", "training.png", "certified_accuracy.png", CONFIG):
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name


def test_published_weights_without_a_checkpoint_are_not_trained_over(
    call: Call,
    finished: Path,
    tmp_path: Path,
) -> None:
    for name in (CONFIG, WEIGHTS):
        shutil.copy(finished / name, tmp_path)
    call.fails(1, r"cannot read .*checkpoint\.safetensors", "train", "--resume", "--out", tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (finished / WEIGHTS).read_bytes()


# -- checkpoints ---------------------------------------------------------------------------------------------------


def some_report() -> Report:
    numbers = torch.zeros(3).long()
    return Report(torch.rand(3), torch.ones(3).bool(), numbers, torch.zeros(3), {}, "l2", ("gaps",), numbers)


def trainer_for(data: Dataset, folder: Path, frozen: tuple[str, ...] = (), epochs: int = 2) -> Trainer:
    model = model_for(data)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return Trainer(model, data, TrainingConfig("tiny", epochs=epochs, batch_size=16, lr=1e-2), folder, CPU)


@pytest.fixture(scope="module")
def state(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors and history of a checkpoint after two epochs of three steps."""
    folder = tmp_path_factory.mktemp("checkpoint")
    trainer_for(data, folder).run()
    with safe_open(folder / checkpoint.NAME, "pt") as file:
        return read_tensors(folder / checkpoint.NAME), json.loads(file.metadata()["history"])


def change(name: str, how: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor], Any], Any]:
    return lambda tensors, rows: tensors.update({name: how(tensors[name])})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t, h: h.append({**h[-1], "epoch": 3}), "its history has 3 epochs, and the run only 2"),
        (lambda t, h: h.clear(), r"0 epochs of 3 steps are none of the optimiser's \[6\] steps"),
        (lambda t, h: [t.pop(k) for k in list(t) if k.startswith("optimizer")], "it has no moments of weight 0"),
        (lambda t, h: h.reverse(), "row 1 of its history is of epoch 2"),
        (lambda t, h: h[1].update(epoch=1), "row 2 of its history is of epoch 1"),
        (lambda t, h: h[0].update(epoch=True), "row 1 of its history is of epoch True"),
        (lambda t, h: h[0].update(epoch=1.0), "row 1 of its history is of epoch 1.0"),
        (lambda t, h: h[0].update(loss="1.0"), "`loss` of epoch 1 is '1.0' in its history"),
        (lambda t, h: h[0].update(loss=None), "`loss` of epoch 1 is None"),
        (lambda t, h: h[0].update(loss=math.nan), "`loss` of epoch 1 is nan"),
        (lambda t, h: h[0].update(lr=math.inf), "`lr` of epoch 1 is inf"),
        (lambda t, h: h[1].update(seconds=-1.0), "`seconds` of epoch 2 is -1.0"),
        (lambda t, h: h[1].update(test_accuracy=1.5), "`test_accuracy` of epoch 2 is 1.5"),
        (lambda t, h: h[1].update(forward_unconverged=7.0), "`forward_unconverged` of epoch 2 is 7.0"),
        (lambda t, h: h[1].update(forward_steps=[3.0]), r"`forward_steps` of epoch 2 is \[3.0\]"),
        (lambda t, h: h[0].pop("lr"), "row 1 of its history has the entries"),
        (lambda t, h: h[0].update(extra=1.0), "row 1 of its history has the entries"),
        (lambda t, h: h.__setitem__(0, [1]), "its history is not a list of rows"),
        (change("optimizer.0.exp_avg", Tensor.int), r"the moment exp_avg of weight 0 is torch\.int32"),
        (change("optimizer.1.exp_avg_sq", Tensor.double), r"the moment exp_avg_sq of weight 1 is torch\.float64"),
        (change("optimizer.1.exp_avg_sq", lambda v: v[:1]), "the moment exp_avg_sq of weight 1 is"),
        (change("optimizer.1.exp_avg_sq", lambda v: -v - 1), "exp_avg_sq of weight 1 is negative"),
        (change("optimizer.0.exp_avg", lambda v: v / 0), "exp_avg of weight 0 holds NaN or inf"),
        (change("optimizer.0.step", lambda v: v - 1), r"none of the optimiser's \[5, 6\] steps"),
        (change("optimizer.0.step", lambda v: v + 0.5), "the step of weight 0 is no count"),
        (change("optimizer.0.step", lambda v: v.int()), "the step of weight 0 is no count"),
        (change("optimizer.0.step", lambda v: v[None]), "the step of weight 0 is no count"),
        (change("optimizer.0.step", lambda v: v * math.inf), "the step of weight 0 is no count"),
        (change("optimizer.0.step", lambda v: -v), "the step of weight 0 is no count"),
        (
            lambda t, h: t.update({k: torch.tensor(999.0) for k in t if k.endswith("step")}),
            r"none of the optimiser's \[999\] steps",
        ),
        (lambda t, h: t.update({"optimizer.99.step": torch.tensor(1.0)}), r"unknown optimizer\.99\.step"),
        (lambda t, h: t.update({"optimizer.0.max_exp_avg_sq": torch.zeros(1)}), "weight 0 has .*max_exp_avg_sq"),
        (lambda t, h: t.update({"extra": torch.zeros(1)}), "unknown extra"),
        (change("generator", lambda v: v[:-1]), "is not a checkpoint of this run"),
        (change("generator", Tensor.float), "is not a checkpoint of this run"),
        (change("generator", torch.zeros_like), "is not a checkpoint of this run"),
        (lambda t, h: t.pop("generator"), "KeyError"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused_and_changes_nothing(
    spoil: Callable[[dict[str, Tensor], Any], Any],
    reason: str,
    data: Dataset,
    state: tuple[dict[str, Tensor], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    tensors, rows = dict(state[0]), json.loads(json.dumps(state[1]))
    spoil(tensors, rows)
    save_file(tensors, tmp_path / checkpoint.NAME, {"history": json.dumps(rows)})
    trainer = trainer_for(data, tmp_path)
    before, generator = weights(trainer.model), trainer.generator.get_state()
    with pytest.raises(RunError, match=reason) as caught:
        trainer.resume()
    assert "\n" not in str(caught.value)
    assert "train again with another --out" in str(caught.value)
    assert same_weights(before, weights(trainer.model))
    assert torch.equal(generator, trainer.generator.get_state())
    assert not any(optimizer.state for optimizer in trainer.optimizers)
    assert not trainer.history


@pytest.mark.parametrize("text", ["", "null", "3", "{}", "[" * 100_000, "[" + "9" * 5000 + "]", '"\\ud800"', "[NaN]"])
def test_a_history_that_is_no_list_of_rows_is_refused(
    text: str, data: Dataset, state: tuple[dict[str, Tensor], Any], tmp_path: Path
) -> None:
    save_file(state[0], tmp_path / checkpoint.NAME, {"history": text})
    with pytest.raises(RunError, match="is not a checkpoint of this run") as caught:
        trainer_for(data, tmp_path).resume()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_shares_is_taken(data: Dataset, state: Any, tmp_path: Path) -> None:
    """Three processes take 5 of 16 samples each, and four steps where one process takes three."""
    tensors = {k: torch.tensor(8.0) if k.endswith("step") else v for k, v in state[0].items()}
    save_file(tensors, tmp_path / checkpoint.NAME, {"history": json.dumps(state[1])})
    trainer = trainer_for(data, tmp_path)
    trainer.resume()
    assert len(trainer.history) == 2


# -- frozen parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [("layer.linear.F",), ("head.weight", "head.bias"), ("layer.linear.U",)])
def test_a_run_with_frozen_parts_resumes_to_the_same_bits(
    frozen: tuple[str, ...], data: Dataset, tmp_path: Path
) -> None:
    names = dict(model_for(data).named_parameters())
    frozen = tuple(name for name in frozen if name in names)
    assert frozen
    whole = trainer_for(data, tmp_path / "whole", frozen, epochs=3)
    whole.run()
    assert all(torch.equal(whole.model.get_parameter(name), names[name]) for name in frozen)
    stopped = trainer_for(data, tmp_path / "run", frozen, epochs=3)

    def stop(row: Epoch) -> None:
        if row.epoch == 1:
            raise KeyboardInterrupt

    stopped.on_epoch = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = trainer_for(data, tmp_path / "run", frozen, epochs=3)
    resumed.resume()
    resumed.run()
    assert same_weights(weights(whole.model), weights(resumed.model))
    with pytest.raises(RunError, match=r"no moments of weight .*, which is to be trained; was that frozen before"):
        trainer_for(data, tmp_path / "run", epochs=3).resume()


def test_a_part_that_is_trained_from_the_second_epoch_on(data: Dataset, tmp_path: Path) -> None:
    """It is resumed as it was when the checkpoint was written; its moments may be younger than the others'."""

    def thaw(trainer: Trainer, stop: int) -> Callable[[Epoch], None]:
        def on_epoch(row: Epoch) -> None:
            trainer.model.get_parameter("layer.linear.F").requires_grad_(True)
            if row.epoch == stop:
                raise KeyboardInterrupt

        return on_epoch

    whole = trainer_for(data, tmp_path / "whole", ("layer.linear.F",), epochs=3)
    whole.on_epoch = thaw(whole, 9)
    whole.run()
    for stop in (1, 2):
        folder = tmp_path / str(stop)
        first = trainer_for(data, folder, ("layer.linear.F",), epochs=3)
        first.on_epoch = thaw(first, stop)
        with pytest.raises(KeyboardInterrupt):
            first.run()
        second = trainer_for(data, folder, ("layer.linear.F",) if stop == 1 else (), epochs=3)
        second.resume()
        second.model.requires_grad_(True)
        second.run()
        assert same_weights(weights(whole.model), weights(second.model)), stop


def test_nothing_to_train(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`model` has no weight to train: all are frozen"):
        trainer_for(data, tmp_path, tuple(name for name, _ in model_for(data).named_parameters()))


# -- disks that fill up --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As `ulimit -f`: a file that grows beyond `size` bytes is an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("what", ["model", "checkpoint", "history", "certified", "training"])
@pytest.mark.parametrize("size", [0, 64])
def test_a_limit_on_files_is_one_line_and_keeps_the_old_ones(
    what: str, size: int, data: Dataset, tmp_path: Path
) -> None:
    row = Epoch(1, 0.1, 1.0, 0.5, 0.5, 0.5, 3.0, 3.0, 0.0, 0.0, 0.1)
    report = some_report()
    trainer = trainer_for(data, tmp_path)
    arguments = (tmp_path / "file", trainer.model, trainer.optimizers, trainer.generator, {}, [row])
    write: Callable[[], object] = {
        "model": lambda: mondeq.save(model_for(data), tmp_path),
        "checkpoint": lambda: checkpoint.write(*arguments),
        "history": lambda: write_history(tmp_path / "file", [row]),
        "certified": lambda: plots.certified_accuracy(report, "title", tmp_path / "file"),
        "training": lambda: plots.training([row], "title", tmp_path / "file"),
    }[what]
    write()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    line = r"^cannot write .*: File too large; is there a limit on the size of files \(ulimit -f\)\?$"
    with largest_file(size), pytest.raises(RunError, match=line) as caught:
        write()
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("size", [0, 3_000, 25_000])
def test_a_training_that_fills_the_disk_is_resumed(
    size: int,
    call: Call,
    finished: Path,
    tmp_path: Path,
) -> None:
    """The first file over the limit is the lock, the checkpoint, a picture: one line each time."""
    run = tmp_path / "run"
    with largest_file(size):
        line = call.fails(1, r"cannot write .*: File too large", *TRAIN, "--out", run)
    assert {0: ".mondeq.lock", 3_000: checkpoint.NAME, 25_000: ".png"}[size] in line
    assert not run.exists() or not own(run)
    begun = (run / checkpoint.NAME).exists()
    assert begun == (size == 25_000)
    assert call(*(("train", "--resume") if begun else TRAIN), "--out", run).code == 0
    assert {p.name for p in run.iterdir()} == {p.name for p in finished.iterdir()}
    assert (run / WEIGHTS).read_bytes() == (finished / WEIGHTS).read_bytes()


def test_a_number_is_found_in_what_safetensors_says() -> None:
    from safetensors import SafetensorError

    for text in ('IoError(Os { code: 28, kind: StorageFull, message: "x" })', "I/O error: full (os error 28)"):
        assert "No space left on device; is the disk full?" in str(files.unwritable(Path("f"), SafetensorError(text)))
    assert "something else; choose" in str(files.unwritable(Path("f"), SafetensorError("something else\nmore")))


def test_files_that_belong_together_are_put_back_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On file systems that have none, such as those of USB sticks."""

    def link(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    paths = [tmp_path / "a", tmp_path / "b"]
    replace_files({path: text_writer("old") for path in paths})
    paths[1].unlink()
    paths[1].mkdir()
    with pytest.raises(RunError, match="cannot write"):
        replace_files({path: text_writer("new") for path in paths})
    assert paths[0].read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_what_cannot_be_written_is_found_before_training(
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(Trainer, "run", lambda self: pytest.fail("trained"))
    run = tmp_path / "run"
    call.fails(1, r"cannot write .*f\.json", *TRAIN, "--out", run, "--json", tmp_path / "absent" / "f.json")
    assert not run.exists()
    monkeypatch.setattr(Path, "mkdir", refusing(Path.mkdir, "tensorboard"))
    call.fails(1, "cannot write .*tensorboard: Permission denied", *TRAIN, "--out", run, "--tensorboard")


def refusing(original: Callable[..., None], name: str) -> Callable[..., None]:
    def mkdir(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        original(self, *arguments, **options)

    return mkdir


# -- nothing of this machine ---------------------------------------------------------------------------------------


def pictures(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for level, name in enumerate(("dark", "light")):
            place = folder / split / name
            place.mkdir(parents=True)
            for k in range(count):
                pixels = (random.integers(0, 100, (5, 6)) + 150 * level).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{k}.png")
    return folder


def test_a_run_may_be_handed_on(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.json has no path; local.json, which stays here, has those that are needed. A `$` breaks no picture."""
    place = pictures(tmp_path / "$\\frac{ pictures")
    monkeypatch.chdir(tmp_path)
    small = ("--model", "dense", "--features", 2, "--epochs", 1, "--batch-size", 8)
    assert call("train", "--data", f"folder:{place.name}", *small, "--out", "run", "--data-dir", tmp_path).code == 0
    run = tmp_path / "run"
    assert str(tmp_path) not in (run / CONFIG).read_text()
    assert json.loads((run / CONFIG).read_text())["training"]["data"] == f"folder:{place.name}"
    assert json.loads((run / "local.json").read_text()) == {"data": f"folder:{place}", "data_dir": str(tmp_path)}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("certify", run).code == 0
    assert call("train", "--resume", "--out", run, "--data", f"folder:{place}").code == 0
    # Handed on, with the pictures somewhere else.
    (run / "local.json").unlink()
    place.rename(tmp_path / "moved")
    call.fails(1, r"where the pictures .* of .* are on this machine is not known; give --data-dir", "certify", run)
    assert call("certify", run, "--data-dir", tmp_path / "moved").code == 0
    (tmp_path / "there").mkdir()
    (tmp_path / "moved").rename(tmp_path / "there" / place.name)
    assert call("train", "--resume", "--out", run, "--data-dir", tmp_path / "there").code == 0
    # As runs were written before.
    config = json.loads((run / CONFIG).read_text())
    config["training"]["data"] = f"folder:{tmp_path / 'there' / place.name}"
    (run / CONFIG).write_text(json.dumps({**config, "data_dir": str(tmp_path)}))
    assert call("certify", run).code == 0
    assert call("train", "--resume", "--out", run).code == 0


@pytest.mark.parametrize("content", ["[]", "{", '{"data": 5}', '{"data_dir": 5}', '{"data_dir": "a\\u0000"}'])
def test_a_local_file_that_is_none(content: str, call: Call, finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    config = json.loads((run / CONFIG).read_text())
    config["training"]["data"] = "folder:x"
    (run / CONFIG).write_text(json.dumps(config))
    (run / "local.json").write_text(content)
    call.fails(1, r"local\.json", "certify", run)


def test_tensorboard_has_all_of_a_resumed_run_and_no_name_of_this_machine(
    call: Call,
    finished: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for _ in range(2):
        assert call("train", "--resume", "--out", run, "--tensorboard").code == 0
    found = list((run / "tensorboard").iterdir())
    assert len(found) == 2
    host = socket.gethostname()
    assert not any(host in path.name or host.encode() in path.read_bytes() for path in found)
    log = EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    with (run / "history.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert set(log.Tags()["scalars"]) >= {"loss", "lr", "test_accuracy"}
    for name in log.Tags()["scalars"]:
        assert [(e.step, e.value) for e in log.Scalars(name)] == [(1, pytest.approx(float(row[name])))]


# -- titles --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("title", ["$\\frac{", "a$b$", "\ud800", "a\nb\t\x1b[31m", "日本", "x" * 4000, "", "{}%s^_"])
def test_any_title_can_be_drawn(title: str, tmp_path: Path) -> None:
    plots.training([Epoch(1, 0.1, 1.0, 0.5, 0.5, 0.5, 3.0, 3.0, 0.0, 0.0, 0.1)], title, tmp_path / "a.png")
    report = some_report()
    plots.certified_accuracy(report, title, tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
