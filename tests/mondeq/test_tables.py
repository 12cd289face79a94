"""`mondeq certify --table` and `--attack`: rows, going on after an interruption, refusals, broken certificates."""

import csv
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mondeq
from mondeq.bounds import base as bounds
from mondeq.certificates import base
from mondeq.cli import main
from mondeq.data import Dataset

Fails = Callable[..., str]
LIMIT = 50


@pytest.fixture(scope="module")
def run(trained: dict[str, mondeq.Classifier], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved network that says what data it was trained on."""
    folder = tmp_path_factory.mktemp("run")
    mondeq.save(trained["lipschitz"], folder, training={"data": "digits"})
    return folder


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    def call(code: int, *arguments: object) -> str:
        """The one line that a command says of its failure."""
        assert main([str(a) for a in arguments]) == code
        out, err = capsys.readouterr()
        assert out == ""
        lines = [line for line in err.splitlines() if line and not line.startswith("warning:")]
        assert len(lines) == 1, err
        return lines[0]

    return call


def certify(run: Path, *options: object) -> tuple[object, ...]:
    return ("certify", run, "--device", "cpu", "--limit", LIMIT, *options)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven images at a time."""
    monkeypatch.setattr(bounds, "_ENTRIES_AT_ONCE", 7 * 64)


def interrupted_after(monkeypatch: pytest.MonkeyPatch, blocks: int, error: BaseException) -> list[int]:
    """Certification that ends before a block; how many images each block had."""
    original, seen = base.Certifier.certify, []

    def certify(self: Any, images: Any, labels: Any, **options: Any) -> Any:
        if len(seen) == blocks:
            raise error
        seen.append(len(images))
        return original(self, images, labels, **options)

    monkeypatch.setattr(base.Certifier, "certify", certify)
    return seen


def test_a_row_for_every_image(run: Path, digits: Dataset, tmp_path: Path, capsys: Any) -> None:
    assert main([str(a) for a in certify(run, "--table", tmp_path / "t.csv")]) == 0
    images, labels = digits.test.images[:LIMIT].float() / 255, digits.test.labels[:LIMIT]
    report = mondeq.certify(mondeq.load(run), images, labels)
    found = rows(tmp_path / "t.csv")
    assert list(found[0]) == ["index", "label", "prediction", "correct", "radius", "method", "error_bound"]
    assert [int(row["index"]) for row in found] == list(range(LIMIT))
    for name, column in (("label", labels), ("prediction", report.prediction)):
        assert [int(row[name]) for row in found] == column.tolist()
    assert [row["correct"] == "True" for row in found] == report.correct.tolist()
    for name in ("radius", "error_bound"):
        assert [float(row[name]) for row in found] == getattr(report, name).tolist()
    assert {row["method"] for row in found if float(row["radius"]) > 0} <= set(report.methods)
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.usefixtures("small_blocks")
def test_an_interrupted_table_goes_on_to_the_same_bytes(
    run: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupted_after(patch, 3, KeyboardInterrupt())
        line = fails(130, *certify(run, "--table", tmp_path / "t.csv"))
    assert line == (
        f"mondeq certify: interrupted; {tmp_path}/t.csv.partial has 21 of 50 images certified: "
        "give the same command to go on"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv.partial"]
    seen = interrupted_after(monkeypatch, 99, KeyboardInterrupt())
    assert main([str(a) for a in certify(run, "--table", tmp_path / "t.csv")]) == 0
    assert seen == [7, 7, 7, 7, 1]
    assert main([str(a) for a in certify(run, "--table", tmp_path / "whole.csv")]) == 0
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "whole.csv"]


@pytest.mark.usefixtures("small_blocks")
def test_a_partial_table_of_something_else_is_refused_and_kept(
    run: Path, trained: dict[str, mondeq.Classifier], tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "t.csv"
    with monkeypatch.context() as patch:
        interrupted_after(patch, 2, KeyboardInterrupt())
        fails(130, *certify(run, "--table", table))
    partial = tmp_path / "t.csv.partial"
    before = partial.read_bytes()
    other = tmp_path / "other"
    mondeq.save(trained["dense"], other, training={"data": "digits"})
    assert "was begun with another network; choose another --table, or delete it" in fails(
        1, *certify(other, "--table", table)
    )
    assert "was begun with another norm" in fails(1, *certify(run, "--table", table, "--norm", "linf"))
    assert "was begun with another data set or --limit" in fails(1, *certify(run, "--limit", 9, "--table", table))
    assert partial.read_bytes() == before
    for damage in (b"", before[: len(before) // 2], b"\x80\x04pickle"):
        partial.write_bytes(damage)
        assert "t.csv.partial is" in fails(1, *certify(run, "--table", table))
        assert partial.read_bytes() == damage
    assert not table.exists()


def test_tables_that_cannot_be_made(run: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is computed."""
    monkeypatch.setattr("mondeq.cli.certify.Certifier", None)
    (tmp_path / "there.csv").write_text("mine")
    refused = "exists, and a table is never overwritten; choose another --table"
    assert refused in fails(1, *certify(run, "--table", tmp_path / "there.csv"))
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert "must end in .csv or .parquet" in fails(1, *certify(run, "--table", tmp_path / "t.txt"))
    assert "cannot write" in fails(1, *certify(run, "--table", tmp_path / "absent" / "t.csv"))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert 'needs the pyarrow package: pip install "mondeq[parquet]"' in fails(
        1, *certify(run, "--table", tmp_path / "t.parquet")
    )


@pytest.mark.usefixtures("small_blocks")
def test_a_full_disk_leaves_what_was_written_before(
    run: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def full(handle: int) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(handle)

    with monkeypatch.context() as patch:
        patch.setattr("mondeq.files.os.fsync", full)
        assert "is the disk full?" in fails(1, *certify(run, "--table", tmp_path / "t.csv"))
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv.partial"]
    seen = interrupted_after(monkeypatch, 99, KeyboardInterrupt())
    assert main([str(a) for a in certify(run, "--table", tmp_path / "t.csv")]) == 0
    assert sum(seen) == LIMIT - 14


def test_a_parquet_table(run: Path, tmp_path: Path, capsys: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("t.csv", "t.parquet"):
        assert main([str(a) for a in certify(run, "--table", tmp_path / name)]) == 0
    found = parquet.read_table(tmp_path / "t.parquet").to_pydict()
    for name, column in found.items():
        cells = [row[name] for row in rows(tmp_path / "t.csv")]
        assert ["" if value is None else str(value) for value in column] == cells


# -- attacks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks with little effort."""
    pytest.importorskip("foolbox")
    original = mondeq.attacks.nearest_adversarials
    monkeypatch.setattr("mondeq.cli.attacked.nearest_adversarials", lambda *a, **k: original(*a, steps=6, **k))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_certified_at_most_attacked_at_most_clean(norm: str, run: Path, tmp_path: Path, capsys: Any) -> None:
    radii = ("0.05", "0.2", "0.8") if norm == "l2" else ("0.01", "0.05", "0.2")
    options = ("--norm", norm, "--attack", "--attack-samples", 30, "--radii", *radii)
    files = ("--json", tmp_path / "f.json", "--table", tmp_path / "t.csv")
    assert main([str(a) for a in certify(run, *options, *files)]) == 0
    out = capsys.readouterr().out
    assert "the first 30 images:" in out
    assert "(30 images attacked; 0.00 % of the attack's gradients were 0)" in out
    figures = json.loads((tmp_path / "f.json").read_text())
    assert set(figures["accuracy_under_each_attack"]) == set(mondeq.attacks.ATTACKS)
    together = figures["accuracy_under_attack"]
    for radius, certified in figures["certified_accuracy_of_attacked"].items():
        each = [attack[radius] for attack in figures["accuracy_under_each_attack"].values()]
        assert certified <= together[radius] <= min(each)
        assert max(each) <= together["0"]
    assert together[radii[-1]] < together["0"]
    found = rows(tmp_path / "t.csv")
    for row in found[:30]:
        assert float(row["attacked_distance"]) > float(row["radius"])
        assert row["attack"] in mondeq.attacks.ATTACKS
    assert all(row["attacked_distance"] == row["attack"] == "" for row in found[30:])


@pytest.mark.usefixtures("quick")
def test_a_broken_certificate_is_a_failure_with_a_sample(
    run: Path, digits: Dataset, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = base.Certifier._radii

    def wrong(self: Any, images: Any) -> Any:
        radius, *rest = original(self, images)
        return (20 * radius, *rest)

    monkeypatch.setattr(base.Certifier, "_radii", wrong)
    for number in (1, 2):
        line = fails(1, *certify(run, "--attack", "--attack-samples", 5, "--json", tmp_path / "f.json"))
        name = f"violation-{number}.safetensors"
        assert line.startswith("mondeq certify: the certificate of image 0 is wrong: nothing within")
        assert line.endswith(f"please report it with {run / name}")
        sample = load_file(run / name)
        model = mondeq.load(run).double()
        image, example = sample["image"].double(), sample["example"]
        assert torch.equal(sample["image"], digits.test.images[0].float() / 255)
        assert int(model(image[None]).argmax()) == int(sample["prediction"]) != int(model(example[None]).argmax())
        assert float((example - image).norm()) <= float(sample["distance"]) <= float(sample["radius"])
    assert not (tmp_path / "f.json").exists()
    for number in (1, 2):
        (run / f"violation-{number}.safetensors").unlink()


@pytest.mark.usefixtures("quick")
def test_attacks_go_on_where_they_were(
    run: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mondeq.attacks.nearest._AT_ONCE", 4)
    options = ("--attack", "--attack-samples", 10, "--radii", 0.2)
    original, calls = mondeq.attacks.nearest_adversarials, []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(named["seed"])
        return original(*arguments, steps=6, **named)

    with monkeypatch.context() as patch:
        patch.setattr("mondeq.cli.attacked.nearest_adversarials", interrupted)
        line = fails(130, *certify(run, *options, "--table", tmp_path / "t.csv"))
    assert "has 50 of 50 images certified, 4 attacked: give the same command to go on" in line
    for name in ("t.csv", "whole.csv"):
        assert main([str(a) for a in certify(run, *options, "--table", tmp_path / name)]) == 0
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
