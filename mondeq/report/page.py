"""The page itself: sections of HTML, put into one template. Every text that a user may have made is escaped."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mondeq.bounds import Bound
from mondeq.certificates import Report
from mondeq.errors import showable
from mondeq.norms import NORMS
from mondeq.report.chart import Curve, chart
from mondeq.report.contents import Contents, Picture
from mondeq.report.style import STYLE

# Points of the certified curve: more than a screen shows of it.
_POINTS = 300

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="mondeq report">
<meta name="mondeq-run" content="$run">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header><h1>$title</h1><p>$subtitle</p></header>
<main>
$sections
</main>
</body>
</html>
""")


def compose(contents: Contents) -> str:
    """The report as HTML, with nothing outside the text.

    Args:
        contents: What it tells.

    Returns:
        The page.
    """
    sections = {
        "In short": _summary(contents),
        "Certified accuracy": _certified(contents),
        "Classes": _by_class(contents),
        "Tightness": _tightness(contents.bounds),
        "Strongest images": _pictures(contents.strongest),
        "Weakest certified images": _pictures(contents.weakest),
        "Training": _training(contents),
        "Recipe": _recipe(contents.config),
        "Made with": _table([[name, text] for name, text in contents.facts.items()], words=2),
    }
    return _PAGE.substitute(
        run=_text(contents.run),
        title=_text(contents.title),
        subtitle=_text(_subtitle(contents)),
        style=STYLE,
        sections="\n".join(f"<section><h2>{name}</h2>{body}</section>" for name, body in sections.items() if body),
    )


def is_of_run(path: Path, run: str) -> bool:
    """Whether a file is the report of a run, which may be written anew.

    Args:
        path: A file that exists.
        run: `Contents.run`.

    Returns:
        True where `compose` wrote it of the same run.
    """
    with path.open("rb") as file:
        start = file.read(1000).decode(errors="replace")
    return f'<meta name="mondeq-run" content="{_text(run)}">' in start


def _text(value: object) -> str:
    return html.escape(showable(str(value)), quote=True)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _subtitle(contents: Contents) -> str:
    training = contents.config.get("training")
    data = training.get("data") if isinstance(training, dict) else None
    images = f"{len(contents.labels)} test images"
    return f"Certified robustness of a network on {images}{f' of {data}' if data else ''}"


def _summary(contents: Contents) -> str:
    report, symbol = contents.report, NORMS[contents.report.norm].symbol
    certified = report.certified_accuracy(contents.radii)
    tightest = min((b.value for b in contents.bounds.values() if b.is_certified), default=float("inf"))
    tiles = [("clean accuracy", _percent(report.accuracy))]
    tiles += [(f"certified at {symbol} {r:g}", _percent(certified[r])) for r in list(contents.radii)[:3]]
    tiles += [("mean certified radius", f"{_mean_radius(report, report.correct):.3f}")]
    tiles += [("Lipschitz constant at most", f"{tightest:.4g}")]
    return (
        f'<div class="tiles">{"".join(f"<div><b>{_text(v)}</b><span>{_text(n)}</span></div>" for n, v in tiles)}</div>'
    )


def _mean_radius(report: Report, among: Tensor) -> float:
    """The mean over some images, in which a wrong one counts as 0."""
    radii = torch.where(report.correct, report.radius, 0.0)[among]
    return float(radii.mean()) if len(radii) else 0.0


def _certified(contents: Contents) -> str:
    report, attacked, symbol = contents.report, contents.attacked, NORMS[contents.report.norm].symbol
    largest = float(report.radius[report.correct & report.radius.isfinite()].max()) if report.correct.any() else 0.0
    end = max(largest, *contents.radii, 1e-3)
    shares = report.certified_accuracy([end * (k / _POINTS) for k in range(_POINTS + 1)])
    clean = 100 * report.accuracy
    curves = [
        Curve("certified", [(r, 100 * share) for r, share in shares.items()], "steps"),
        Curve("clean", [(0, clean), (end, clean)], "dashes"),
    ]
    if attacked:
        name = f"under attack ({contents.attacked_count} images)"
        curves.append(Curve(name, [(r, 100 * share) for r, share in sorted(attacked.items())], "dots"))
    drawing = chart(curves, f"{symbol} radius, pixels in [0, 1]", "accuracy (%)", top=100.0)
    certified = report.certified_accuracy(contents.radii)
    header = [f"{symbol} radius", "certified", *(["under attack"] if attacked else [])]
    rows = [["0 (clean)", _percent(report.accuracy), *([_percent(attacked[0.0])] if attacked else [])]]
    rows += [[f"{r:g}", _percent(certified[r]), *([_percent(attacked[r])] if attacked else [])] for r in contents.radii]
    note = (
        "Certified is the share of images that are classified right and proved to stay so for every change of at most "
        "that norm, errors of solvers and rounding included. "
    )
    note += (
        "Under attack is what an adversary left standing: no more is robust." if attacked else "Nothing was attacked."
    )
    return f"{drawing}{_table(rows, header)}<p>{note}</p>"


def _by_class(contents: Contents) -> str:
    report = contents.report
    header = ["class", "images", "clean", *(f"at {r:g}" for r in contents.radii), "mean radius"]
    rows = []
    for number, name in enumerate(contents.classes):
        among = contents.labels == number
        if among.any():
            # Of the images of one class alone.
            standing = report.correct[among] & (report.radius[among] > 0)
            shares = [_share(standing & (report.radius[among] >= r)) for r in contents.radii]
            clean = _share(report.correct[among])
            rows.append(
                [name, str(int(among.sum())), *map(_percent, [clean, *shares]), f"{_mean_radius(report, among):.3f}"]
            )
    return _table(rows, header) + "<p>A wrong image counts with radius 0.</p>"


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


def _tightness(bounds: Mapping[str, Bound]) -> str:
    seen = max((b.value for b in bounds.values() if not b.is_certified), default=0.0)
    rows = []
    for name, bound in bounds.items():
        gap = "" if bound.pairs is None else f"{float(bound.pairs.max()):.4f}"
        times = f"{bound.value / seen:.2f}" if bound.is_certified and seen > 0 else ""
        rows.append([name, bound.kind, bound.assumptions, f"{bound.value:.4f}", gap, times])
    header = ["Lipschitz constant", "kind", "holds", "all logits", "largest gap", "× estimate"]
    note = (
        "In logits per pixel unit. The true constant lies between the estimate, a slope that was seen at test images, "
        "and the smallest certified bound."
    )
    return f"{_table(rows, header, words=3)}<p>{note}</p>"


def _pictures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    return f'<div class="pictures">{"".join(map(_picture, pictures))}</div>'


def _picture(picture: Picture) -> str:
    shown = [_shown(picture.image, f"an image of {picture.name}")]
    text = f"<b>{_text(picture.name)}</b><br>certified to {picture.radius:.3f}"
    if picture.attacked is not None:
        shown.append(_shown(picture.attacked, f"the same attacked, as {picture.attacked_name}"))
        text += f"<br>attacked: {_text(picture.attacked_name)} at {picture.distance:.3f}"
    return f"<figure>{''.join(shown)}<figcaption>{text}</figcaption></figure>"


def _shown(image: Tensor, text: str) -> str:
    """An image as one of the page; of channels that are neither grey nor RGB their mean."""
    pixels = image if len(image) in (1, 3) else image.mean(0, keepdim=True)
    bytes_ = pixels.detach().cpu().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    png = io.BytesIO()
    Image.fromarray(bytes_[:, :, 0] if bytes_.shape[2] == 1 else bytes_).save(png, "PNG")
    return f'<img alt="{_text(text)}" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'


def _training(contents: Contents) -> str:
    history = contents.history
    if not history:
        return ""
    epochs = [row.epoch for row in history]

    def curve(name: str, values: Sequence[float]) -> Curve:
        return Curve(name, list(zip(epochs, values, strict=True)))

    charts = [
        chart([curve("training loss", [row.loss for row in history])], "epoch", "loss"),
        chart(
            [
                curve("train", [100 * row.train_accuracy for row in history]),
                curve("test", [100 * row.test_accuracy for row in history]),
                curve("test, certified (estimate)", [100 * row.certified_estimate for row in history]),
            ],
            "epoch",
            "accuracy (%)",
            top=100.0,
        ),
        chart([curve("learning rate", [row.lr for row in history])], "epoch", "learning rate"),
        chart(
            [
                curve("forward", [row.forward_steps for row in history]),
                curve("backward", [row.backward_steps for row in history]),
            ],
            "epoch",
            "solver steps per sample",
        ),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _recipe(config: Mapping[str, Any]) -> str:
    groups = {name: config[name] for name in ("preset", "training") if isinstance(config.get(name), dict)}
    rows = [[group, name, _value(value)] for group, entries in groups.items() for name, value in entries.items()]
    whole = html.escape(json.dumps(config, indent=1, ensure_ascii=True))
    tables = _table(_merged(rows), ["of", "setting", "value"], words=3) if rows else ""
    return (
        f"<details open><summary>Settings</summary>{tables}</details>"
        f"<details><summary>config.json</summary><pre>{whole}</pre></details>"
    )


def _merged(rows: list[list[str]]) -> Iterator[list[str]]:
    """A group is named in its first row alone."""
    for group, members in groupby(rows, key=lambda row: row[0]):
        for number, row in enumerate(members):
            yield [group if number == 0 else "", *row[1:]]


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(rows: Iterator[list[str]] | list[list[str]], header: Sequence[str] = (), *, words: int = 1) -> str:
    """A table whose first columns are words, to the left, and whose others are numbers, to the right."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{'' if k < words else ' class=number'}>{_text(cell)}</{tag}>" for k, cell in enumerate(row)
        )

    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>" if header else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="table"><table>{head}<tbody>{body}</tbody></table></div>'
