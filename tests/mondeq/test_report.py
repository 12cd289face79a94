"""`mondeq report`: one file that needs no other, well formed, true to its figures, safe with any name."""

import base64
import importlib.util
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mondeq
from mondeq import Certifier
from mondeq.data import Dataset, load
from mondeq.report import Contents, Picture, compose
from mondeq.report.chart import Curve, chart
from mondeq.runs import CONFIG
from mondeq.training import Epoch
from mondeq.training.progress import read_history, write_history
from tests.mondeq.test_cli import Call
from tests.mondeq.zoo import model_for, tiny_dataset

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>alert('&\"')</script>"
VOID = {"meta", "img", "br", "line", "path", "circle"}


class Page(HTMLParser):
    """What a page says and asks for; its tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def images(self) -> list[np.ndarray[Any, Any]]:
        """The pixels of its pictures."""
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        data = [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]
        return [np.asarray(Image.open(io.BytesIO(each))) for each in data]


def page_of(text: str) -> Page:
    """The page, found to ask for nothing outside it and to run nothing."""
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                assert (value or "").startswith("data:image/png;base64,")
    assert not re.search(r"url\(|@import|https?:", text)
    return page


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("report") / "my run"
    options = ("--data", "digits", "--model", "lipschitz", "--features", 12, "--radius", 0.25, "--epochs", 3)
    from mondeq.cli import main

    assert main(["train", *map(str, options), "--lr", "0.02", "--certify", "40", "--out", str(run)]) == 0
    return run


def contents(data: Dataset, **change: Any) -> Contents:
    model = model_for(data).eval()
    report = Certifier(model).certify(data.test.images.float() / 255, data.test.labels)
    defaults: dict[str, Any] = {
        "title": "run", "run": "abc", "facts": {"seed": "0"}, "config": {"training": {"data": "tiny"}},
        "classes": data.classes, "report": report, "labels": data.test.labels, "radii": [0.1, 0.5],
        "bounds": report.bounds, "history": [], "attacked": None, "attacked_count": 0, "strongest": [], "weakest": [],
    }  # fmt: skip
    return Contents(**defaults | change)


def test_a_report_has_the_figures_of_the_run(call: Call, finished: Path) -> None:
    called = call("report", finished)
    assert (called.code, called.out) == (0, f"report: {finished / 'report.html'}\n")
    page = page_of((finished / "report.html").read_text(encoding="utf-8"))
    digits, model = load("digits"), mondeq.load(finished)
    images, labels = digits.test.images.float() / 255, digits.test.labels
    report = mondeq.certify(model, images, labels)
    for radius, share in report.certified_accuracy([0.1, 0.2, 0.25, 0.5, 1.0, 1.58]).items():
        assert f"{radius:g} {100 * share:.2f} %" in page.text
    assert f"0 (clean) {100 * report.accuracy:.2f} %" in page.text
    for number in range(10):
        among = labels == number
        radii = torch.where(report.correct, report.radius, 0.0)[among]
        row = rf"{number} {int(among.sum())} {100 * float(report.correct[among].double().mean()):.2f} % .*?%"
        assert re.search(row + rf" {float(radii.mean()):.3f}\b", page.text)
    for name, bound in mondeq.lipschitz_bounds(model, images[:500]).items():
        assert f"{name} {bound.kind}" in page.text
        assert f"{bound.value:.4f}" in page.text
    for word in ("my run", "359 test images of digits", "loss", "logit_scale", mondeq.__version__, torch.__version__):
        assert word in page.text
    assert str(finished.parent) not in page.text
    order = (report.radius * report.correct).argsort(descending=True)
    shown = page.images()
    assert len(shown) == 16
    for picture, number in zip(shown[:8], order, strict=False):
        assert np.array_equal(picture, digits.test.images[number, 0].numpy())


def test_an_attack_stays_outside_the_certified_radius(call: Call, finished: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("foolbox") is None:
        call.fails(1, r'needs the foolbox package: pip install "mondeq\[attack\]"', "report", finished, "--attack")
        return
    out = tmp_path / "page.html"
    assert call("report", finished, "--attack", "--limit", 4, "--out", out).code == 0
    page = page_of(out.read_text(encoding="utf-8"))
    assert "under attack (4 images)" in page.text
    found = re.findall(r"certified to ([\d.]+) attacked: (\d) at ([\d.]+)", page.text)
    assert len(found) >= 2
    assert all(float(radius) <= float(distance) + 1e-3 for radius, _, distance in found)
    assert len(page.images()) == page.text.count("certified to") + len(found)


def test_a_run_that_was_trained_in_another_norm_is_reported_in_that_norm(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "boxes"
    options = ("--features", "8", "--channels", "2", "--epochs", "1", "--radius", "0.03", "--certify", "5")
    assert call("train", "--data", "digits", "--model", "interval", *options, "--out", folder).code == 0
    assert call("report", folder, "--limit", 20).code == 0
    page = page_of((folder / "report.html").read_text(encoding="utf-8"))
    assert "certified at ℓ∞ 0.01" in page.text
    assert "ℓ2" not in page.text


def test_only_a_report_of_the_same_run_is_written_over(call: Call, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    first = ("report", finished, "--limit", 5, "--out", out)
    assert call(*first).code == 0
    assert call(*first).code == 0
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    config = json.loads((other / CONFIG).read_text())
    (other / CONFIG).write_text(json.dumps({**config, "note": "another"}))
    before = out.read_bytes()
    call.fails(1, r"out\.html exists and is no report of this run; choose another --out", "report", other, "--out", out)
    assert out.read_bytes() == before
    for content in (b"", b"<html>", b"\xff" * 2000):
        out.write_bytes(content)
        call.fails(1, "is no report of this run", *first)
        assert out.read_bytes() == content
    call.fails(1, "cannot write", "report", finished, "--out", tmp_path)
    call.fails(1, "cannot write", "report", finished, "--out", tmp_path / "absent" / "x.html")
    call.fails(1, "does not exist; is .* a run folder", "report", tmp_path)


def test_a_saved_network_without_training_is_reported_too(call: Call, finished: Path, tmp_path: Path) -> None:
    """No history, no metrics."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("history.csv", "metrics.json", "checkpoint.safetensors"):
        (run / name).unlink()
    assert call("report", run, "--limit", 20).code == 0
    assert "learning rate" not in page_of((run / "report.html").read_text(encoding="utf-8")).text


@pytest.mark.parametrize("text", ["", "epoch\n1\n", "a,b\n1,2\n", "\x00"])
def test_a_history_that_is_none(text: str, call: Call, finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    good = read_history(run / "history.csv")
    assert [row.epoch for row in good] == [1, 2, 3]
    write_history(run / "history.csv", good)
    assert read_history(run / "history.csv") == good
    (run / "history.csv").write_text(text)
    if text in ("", "\x00"):
        assert read_history(run / "history.csv") == []
    else:
        call.fails(1, r"history\.csv is no history of training .*; remove it", "report", run, "--limit", 5)


# -- the page --------------------------------------------------------------------------------------------------------


def test_every_name_is_escaped() -> None:
    data = tiny_dataset()
    named = Dataset("tiny", data.train, data.test, (EVIL, "b&b", "c"))
    image = torch.rand(3, 4, 4)
    picture = Picture(image, EVIL, 0.1, image, EVIL, 0.2)
    text = compose(
        contents(
            named,
            title=EVIL + "\x1b[31m\ud800",
            config={"training": {"data": EVIL, EVIL: EVIL}, EVIL: [EVIL]},
            facts={EVIL: EVIL},
            strongest=[picture],
            weakest=[picture],
        )
    )
    text.encode("utf-8")
    page = page_of(text)
    assert page.text.count("alert") >= 10
    assert "\x1b" not in text


def test_nothing_certified_and_nothing_right() -> None:
    data = tiny_dataset()
    wrong = contents(data)
    report = Certifier(model_for(data).eval()).certify(
        data.test.images.float() / 255, (wrong.report.prediction + 1) % 3
    )
    page = page_of(compose(contents(data, report=report, bounds={})))
    assert "0.00 % clean accuracy" in page.text
    assert "Strongest" not in page.text
    assert page.images() == []


@pytest.mark.parametrize("radius", [1e-300, 1e308])
def test_a_radius_of_any_size(radius: float) -> None:
    assert f"{radius:g}" in page_of(compose(contents(tiny_dataset(), radii=[0.1, radius]))).text


def test_grey_colour_and_other_channels_are_shown() -> None:
    for channels, shape in ((1, (5, 6)), (3, (5, 6, 3)), (2, (5, 6))):
        page = page_of(compose(contents(tiny_dataset(), strongest=[Picture(torch.rand(channels, 5, 6), "a", 0.5)])))
        assert page.images()[0].shape == shape


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_a_history_of_any_length(epochs: int) -> None:
    history = [Epoch(k, 0.0, 1e9 / k, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1) for k in range(1, epochs + 1)]
    assert "learning rate" in page_of(compose(contents(tiny_dataset(), history=history))).text


# -- curves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-9, 0.03, 0.99, 1.0, 7.3, 1e6])
def test_axes_hold_all_points_and_ticks_are_few(scale: float) -> None:
    drawing = chart([Curve("c", [(0, 0), (scale / 3, scale), (scale, scale / 2)])], "x", "y")
    page = Page(drawing)
    path = next(attributes["d"] or "" for tag, attributes in page.tags if tag == "path")
    numbers = [tuple(map(float, pair.split())) for pair in path.removeprefix("M").split("L")]
    assert numbers[0] == (56.0, 258.0)
    assert numbers[2][0] == 624.0
    assert all(56 <= x <= 624 and 30 <= y <= 258 for x, y in numbers)
    lines = [attributes for tag, attributes in page.tags if tag == "line"]
    assert 5 <= len(lines) <= 15


def test_steps_are_never_above_what_is_certified() -> None:
    """Between two points the curve has the height of the second, the lower one."""
    page = Page(chart([Curve("c", [(0, 100), (1, 50), (2, 0)], "steps")], "x", "y", top=100))
    path = next(attributes["d"] for tag, attributes in page.tags if tag == "path")
    assert path == "M56.0 30.0V144.0H340.0V258.0H624.0"


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_a_browser_draws_it(tmp_path: Path) -> None:
    """In full: the drawing has many colours and its last section."""
    (tmp_path / "page.html").write_text(compose(contents(tiny_dataset(), facts={"the last": "fact"})), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
    shot = tmp_path / "shot.png"
    subprocess.run(
        [str(BROWSER), *options, "--window-size=900,1800", f"--screenshot={shot}", (tmp_path / "page.html").as_uri()],
        check=True,
        capture_output=True,
        timeout=300,
    )
    drawn = np.asarray(Image.open(shot).convert("RGB"))
    assert drawn.shape == (1800, 900, 3)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50
