"""What `train`, `certify` and `bound` share: finding a run's data, certifying a split, tables of the result."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mondeq import data, distributed
from mondeq.bounds import Bound
from mondeq.certificates import Certifier, Report
from mondeq.cli import places
from mondeq.cli.output import percent, table
from mondeq.cli.tables import Columns, Partial, in_rounds
from mondeq.errors import ConfigError
from mondeq.network import Network
from mondeq.norms import NORMS
from mondeq.settings import number

COLUMNS = {
    "radius": torch.float64,
    "correct": torch.bool,
    "prediction": torch.int64,
    "error_bound": torch.float64,
    "method": torch.int64,
}
"""What a report has of every image, with its dtypes."""


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option `--device`.

    Args:
        parser: That of a subcommand.
    """
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add the option `--data-dir`.

    Args:
        parser: That of a subcommand.
    """
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where data files are or go (default: $MONDEQ_DATA, else a cache)"
    )


def count(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at most eighteen digits.

    Args:
        least: The smallest that is allowed.

    Returns:
        What reads one, and raises ArgumentTypeError for anything else.
    """

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number ≥ {least}, or too large a one")
        return int(text)

    return parse


def load_data(name: str, data_dir: Path | None, extra: str | None = None) -> data.Dataset:
    """The data set; where there are several processes, the first downloads and decodes while the others wait.

    Args:
        name: Of the data set.
        data_dir: Where its files are or go; None for the usual places.
        extra: The folder of further training images, None for none.

    Returns:
        The data set.

    Raises:
        ConfigError: There is none of that name.
        DataError: Its files are missing or damaged, or further images do not fit.
    """
    if not distributed.is_main():
        distributed.wait()
    dataset = data.load(name, data_dir)
    dataset = dataset if extra is None else data.with_extra(dataset, extra)
    if distributed.is_main():
        distributed.wait()
    return dataset


def add_norm(parser: argparse.ArgumentParser) -> None:
    """Add the option `--norm`.

    Args:
        parser: That of a subcommand.
    """
    parser.add_argument("--norm", choices=tuple(NORMS), default="l2", help="of changes of the image (default l2)")


def add_radii(parser: argparse.ArgumentParser, *norms: str) -> None:
    """Add the option `--radii`, which is None where the radii of a norm are meant.

    Args:
        parser: That of a subcommand.
        *norms: The names of the norms that it may be about.
    """
    defaults = ", ".join(f"{name} {' '.join(map(str, NORMS[name].radii))}" for name in norms)
    parser.add_argument(
        "--radii", type=_radius, nargs="+", metavar="R",
        help=f"radii in pixels of [0, 1], fractions allowed (default: {defaults})",
    )  # fmt: skip


def _radius(text: str) -> float:
    value = number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a radius; give numbers ≥ 0 such as 0.5 or 36/255")
    return value


def run_data(run: Path, data_dir: Path | None, model: Network) -> data.Dataset:
    """The data set a run was trained on.

    Args:
        run: The run folder.
        data_dir: Where its files are; None for where they were then.
        model: The network of the run.

    Returns:
        The data set.

    Raises:
        ConfigError: The run names no data set, or images or classes are not those of the network.
        DataError: Its files are missing or damaged.
        RunError: The files of the run cannot be read.
    """
    dataset = load_data(*places.find(run, data_dir))
    check_fits(model, dataset)
    return dataset


def check_fits(model: Network, dataset: data.Dataset) -> None:
    """Raise unless images and classes of a data set are those that a network was trained on, in their order.

    It warns where the network does not know the names of its classes, as those of older versions do not.

    Args:
        model: The network.
        dataset: The data set.

    Raises:
        ConfigError: They are others.
    """
    shape = tuple(dataset.test.images.shape[1:])
    if shape != tuple(model.in_shape):
        needed = tuple(model.in_shape)
        raise ConfigError(f"`images` must have shape {needed} for this run, those of the data have {shape}")
    trained, found = model.class_names, dataset.classes
    if model.classes != len(found):
        raise ConfigError(f"the run has {model.classes} classes and the data {len(found)}; give the data as it was")
    if not trained:
        text = "the run does not say the names of its classes: that the data still has the same cannot be checked"
        warnings.warn(text, UserWarning, stacklevel=2)
    for place, (then, now) in enumerate(zip(trained, found, strict=False)):
        if then != now:
            raise ConfigError(
                f"class {place} was {then!r} when the run was trained and is {now!r} in the data; give the data as it "
                "was, or train again"
            )


def pixels(split: data.Split, first: int, last: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Some images as floats in [0, 1], and their labels.

    Args:
        split: Images and labels.
        first: The number of the first.
        last: The number behind the last.
        device: Where they are to be.

    Returns:
        Images and labels.
    """
    # Bytes travel to the device, not floats: a quarter of the traffic.
    images = split.images[first:last].to(device)
    return images.to(torch.float32).div_(255), split.labels[first:last].to(device)


def first_images(split: data.Split, limit: int | None) -> data.Split:
    """The first images of a split.

    Args:
        split: Images and labels.
        limit: How many of them; None for all.

    Returns:
        Their split.
    """
    return split if limit is None else data.Split(split.images[:limit], split.labels[:limit])


def certify_split(
    certifier: Certifier, split: data.Split, limit: int | None = None, partial: Partial | None = None
) -> Report:
    """The report on a split, each process taking a share.

    Args:
        certifier: What certifies.
        split: Images and labels.
        limit: How many images of it; None for all.
        partial: What was found before, and where to keep it.

    Returns:
        The report on all of them, in every process.

    Raises:
        InvalidType: Images or labels are no such tensors.
        InvalidArgument: Images have the wrong shape, or labels are out of range.
        RunError: The partial table cannot be used.
    """
    split = first_images(split, limit)
    device = certifier.chain.exact.device
    columns = shared_columns(certifier.certify, COLUMNS, split, device, certifier.chain.at_once, partial=partial)
    return Report(**columns, bounds=certifier.bounds, norm=certifier.chain.norm, methods=certifier.methods)


def shared_columns(
    compute: Callable[[Tensor, Tensor], Any],
    kinds: dict[str, torch.dtype],
    split: data.Split,
    device: torch.device,
    most: int,
    *,
    partial: Partial | None = None,
) -> Columns:
    """What is computed of every image of a split, each process taking a share.

    Args:
        compute: Images and labels ↦ an object with a tensor, one entry per image, for each name in `kinds`.
        kinds: The dtypes of the columns by name.
        split: Images and labels.
        device: Where `compute` wants them.
        most: How many images at a time.
        partial: Where what is done is kept, so that an interrupted computation goes on.

    Returns:
        The columns of all images by name, in every process.
    """

    def work(first: int, last: int) -> Columns:
        part = compute(*pixels(split, first, last, device))
        return {name: getattr(part, name) for name in kinds}

    return in_rounds(work, len(split), most, phase="certifying", kinds=kinds, partial=partial or Partial(None, {}))


def report_table(
    report: Report, radii: Sequence[float], attacked: Mapping[str, Mapping[float, float]] | None = None
) -> str:
    """Certified accuracy by radius as a table, and accuracies under attack beside it.

    Args:
        report: What was certified.
        radii: The rows.
        attacked: Accuracy by attack and radius, with the clean accuracy at 0; None for no such columns.

    Returns:
        The table.
    """
    certified, attacked = report.certified_accuracy(radii), attacked or {}
    header = [f"{NORMS[report.norm].symbol} radius", "certified", *attacked]
    rows = [["0 (clean)", percent(report.accuracy), *(percent(a[0.0]) for a in attacked.values())]]
    rows += [[f"{r:g}", percent(certified[r]), *(percent(a[r]) for a in attacked.values())] for r in map(float, radii)]
    return table(rows, header=header)


def local_gain(before: Report, after: Report, radii: Sequence[float]) -> str:
    """What local certificates add to the others, by radius and for the images whose radius they enlarge, as a table.

    Args:
        before: The report without them.
        after: The report with them.
        radii: The rows.

    Returns:
        The table and a sentence.
    """
    found = [report.certified_accuracy(radii) for report in (before, after)]
    rows = [[f"{r:g}", *(percent(shares[r]) for shares in found)] for r in map(float, radii)]
    proved = before.radius > 0
    factor = after.radius[proved] / before.radius[proved]
    median = f"{float(factor.median()):.3g}" if len(factor) else "-"
    shown = table(rows, header=[f"{NORMS[after.norm].symbol} radius", "without --local", "with it"])
    return f"{shown}\nlocal certificates multiply the radius of an image by {median} in the median"


def bounds_table(bounds: dict[str, Bound]) -> str:
    """Each bound with what kind of statement it is, as a table.

    Args:
        bounds: What `lipschitz_bounds` returned.

    Returns:
        The table.
    """
    rows = [
        [name, f"{b.value:.4f}", "" if b.pairs is None else f"{float(b.pairs.max()):.4f}", b.kind]
        for name, b in bounds.items()
    ]
    return table(rows, header=["Lipschitz constant (logits per pixel unit)", "all logits", "largest gap", "kind"])


def report_json(report: Report, radii: Sequence[float]) -> dict[str, Any]:
    """The figures of a report, for metrics.json and --json.

    Args:
        report: What was certified.
        radii: Those of the certified accuracies.

    Returns:
        The figures by name.
    """
    return {
        "test_accuracy": report.accuracy,
        "certified_accuracy": {f"{r:g}": share for r, share in report.certified_accuracy(radii).items()},
        "lipschitz": {name: {"value": b.value, "kind": b.kind} for name, b in report.bounds.items()},
        "norm": report.norm,
        "certificates": {
            name: int((report.method[report.radius > 0] == place).sum()) for place, name in enumerate(report.methods)
        },
        "largest_solver_error_bound": float(report.error_bound.max()) if len(report.error_bound) else 0.0,
        "samples": len(report.radius),
    }
