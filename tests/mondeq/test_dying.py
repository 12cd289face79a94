"""A run that dies, by whatever signal at whatever operation, goes on to the bits of one that did not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_training_that_dies_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    """The critical operations of a training of two epochs and two others; `tests.mondeq.dying` tries all of them.

    After each, what was left is resumed, or started again where nothing was trained: weights, checkpoint, history,
    figures, pictures and TensorBoard's log are those of a whole run, no other file is there, and what was said of
    the folder when the run was interrupted is so.
    """
    pytest.importorskip("tensorboard")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "tests.mondeq.dying", tmp_path, "INT,KILL", "some", "5", "61"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout
    assert lines[0].startswith("10 of ")
