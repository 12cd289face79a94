"""The two pictures of a run: certified accuracy against radius, and the course of training."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from mondeq.certificates import Report
from mondeq.files import replace_file
from mondeq.norms import NORMS
from mondeq.training.progress import Epoch

matplotlib.use("Agg", force=False)

_TITLE = 60  # characters
# Labels and titles are plain text, also where a user's own settings say LaTeX.
_plain = matplotlib.rc_context({"text.usetex": False})


@_plain
def certified_accuracy(report: Report, title: str, path: Path) -> None:
    """Draw the certified-accuracy curve: the share of test images that are certified at each radius.

    Args:
        report: What was certified.
        title: What stands above the curve. Of a long title the end is kept.
        path: The PNG file to make or to replace.

    Raises:
        RunError: The file cannot be written.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    certified = _sorted_radii(report)
    share = [100 * (len(certified) - k) / max(len(report.radius), 1) for k in range(len(certified))]
    axes.plot([0.0, *certified], [100 * report.accuracy, *share], drawstyle="steps-pre", linewidth=2)
    axes.axhline(100 * report.accuracy, color="grey", linewidth=1, linestyle=":")
    axes.annotate(
        f"accuracy {100 * report.accuracy:.2f} %",
        (1, 100 * report.accuracy),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        color="grey",
    )
    radius = f"{NORMS[report.norm].symbol} radius (pixels in [0, 1])"
    axes.set(xlabel=radius, ylabel="certified accuracy (%)", ylim=(0, 105))
    axes.set_title(_one_line(title), parse_math=False)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    _write(figure, path)


@_plain
def training(history: list[Epoch], title: str, path: Path) -> None:
    """Draw the course of training: loss, accuracies and solver steps by epoch.

    Args:
        history: The figures of each epoch.
        title: What stands above the curves. Of a long title the end is kept.
        path: The PNG file to make or to replace.

    Raises:
        RunError: The file cannot be written.
    """
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    loss, accuracy, steps = figure.subplots(1, 3)
    epochs = [row.epoch for row in history]
    marker = "o" if len(history) < 2 else None
    loss.plot(epochs, [row.loss for row in history], marker=marker)
    loss.set(title="training loss", xlabel="epoch")
    accuracy.plot(epochs, [100 * row.train_accuracy for row in history], label="train", marker=marker)
    accuracy.plot(epochs, [100 * row.test_accuracy for row in history], label="test", marker=marker)
    accuracy.plot(
        epochs, [100 * row.certified_estimate for row in history], label="test, certified (estimate)", marker=marker
    )
    accuracy.set(title="accuracy (%)", xlabel="epoch")
    accuracy.legend(fontsize="small", loc="lower right")
    steps.plot(epochs, [row.forward_steps for row in history], label="forward", marker=marker)
    steps.plot(epochs, [row.backward_steps for row in history], label="backward", marker=marker)
    steps.set(title="solver steps per sample", xlabel="epoch", ylim=(0, None))
    steps.legend(fontsize="small")
    for axes in (loss, accuracy, steps):
        axes.grid(alpha=0.3)
    figure.suptitle(_one_line(title), parse_math=False)
    _write(figure, path)


def _sorted_radii(report: Report) -> list[float]:
    kept: Tensor = report.radius[report.correct]
    return sorted(kept.tolist())


def _one_line(title: str) -> str:
    """A title that fits above a picture, its end kept, of characters that can be drawn: a path may hold any."""
    drawn = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in title)
    return drawn if len(drawn) <= _TITLE else "…" + drawn[1 - _TITLE :]


def _write(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that the font lacks become boxes.
        warnings.filterwarnings("ignore", message="Glyph ")
        figure.savefig(picture, dpi=120, format="png")
    replace_file(path, lambda temporary: temporary.write_bytes(picture.getvalue()))
