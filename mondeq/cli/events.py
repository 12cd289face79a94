"""What `--tensorboard` writes: files of events for TensorBoard, whose own writer would name this machine in them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mondeq.errors import ConfigError
from mondeq.files import unwritable
from mondeq.training.progress import Epoch

FOLDER = "tensorboard"
_FIGURES = ("loss", "lr", "train_accuracy", "test_accuracy", "certified_estimate", "forward_steps")


def need_tensorboard() -> None:
    """Check that what `--tensorboard` needs is installed.

    Raises:
        ConfigError: The package is missing.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise ConfigError('--tensorboard needs the tensorboard package: pip install "mondeq[tensorboard]"') from None


class EventFile:
    """A new file of events, to which rows are added.

    It begins with the mark of a start, which makes TensorBoard forget the files of starts before: a run that died
    between a checkpoint and its figures has all of them after it was resumed, and none twice.

    Args:
        folder: Where the file shall be. The folder is made if it is absent.
        history: The rows that it begins with.

    Raises:
        RunError: The file cannot be written.
    """

    def __init__(self, folder: Path, history: list[Epoch]) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._path = folder
        try:
            folder.mkdir(exist_ok=True)
            before = sum(1 for _ in folder.iterdir())
            # In the order of starts when sorted, as TensorBoard reads them.
            self._path = folder / f"events.out.tfevents.{time.time():.0f}.{before:06d}"
            self._path.touch(exist_ok=False)
        except OSError as error:
            raise unwritable(self._path, error) from None
        self._write(file_version="brain.Event:2")
        self._write(session_log=SessionLog(status=SessionLog.START))
        for row in history:
            self.add(row)

    def add(self, row: Epoch) -> None:
        """Add the figures of an epoch.

        Args:
            row: The figures.

        Raises:
            RunError: The file cannot be written.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=getattr(row, name)) for name in _FIGURES]
        self._write(step=row.epoch, summary=Summary(value=values))

    def _write(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from torch.utils.tensorboard import RecordWriter

        try:
            with self._path.open("ab") as file:
                RecordWriter(file).write(Event(wall_time=time.time(), **content).SerializeToString())
        except OSError as error:
            raise unwritable(self._path, error) from None
