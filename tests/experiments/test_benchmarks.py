"""The dense benchmark runs, and what it compares with is the algorithm it claims to be. Nothing here is timed."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mondeq
from experiments.benchmarks import dense
from experiments.benchmarks.competitors import Network, Pair, TrainingStep, textbook_copy
from experiments.benchmarks.measure import Quartiles, Timings, interleave, table, write_json
from experiments.benchmarks.steps import AUTO, count_steps, load_checkpoint
from experiments.benchmarks.textbook import TextbookLayer


def _textbook(m: float = 0.5) -> tuple[TextbookLayer, mondeq.Dense]:
    linear = mondeq.Dense(5, 7, m).double()
    return textbook_copy(linear, m, tol=1e-13), linear


def test_smoke_run_prints_tables_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dense.json"
    assert dense.main(["--smoke", "--json", str(path), "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    for title in ("Training step", "Evaluation", "Steps to relative change"):
        assert title in printed
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["seed"] == 3
    assert {"cpu", "cores", "torch", "threads"} <= content["machine"].keys()
    for part in ("training", "evaluation"):
        for result in content[part]:
            assert result["speedup"]["low"] <= result["speedup"]["median"] <= result["speedup"]["high"]
            for one in result["outcomes"].values():
                assert one["success"]
                assert one["forward_steps"] >= 1
                assert one["error_worst_sample"] < 0.1
                assert one["gradient_error"] < 0.2
    assert content["steps"]["methods"][AUTO]["steps"] <= 10


def test_textbook_solves_the_equilibrium_and_differentiates_it() -> None:
    layer, linear = _textbook()
    x = torch.randn(4, 5, dtype=torch.float64)
    g = torch.randn(4, 7, dtype=torch.float64)
    z = layer(x)
    W, U, b = linear.weight().detach(), linear.U.detach(), linear.b.detach()
    torch.testing.assert_close(z.detach(), (z.detach() @ W.mT + x @ U.mT + b).relu(), rtol=0, atol=1e-12)
    z.backward(g)
    # q = D(Wᵀq + g), sample by sample, by a direct solve; ∂/∂b = Σ q, ∂/∂U = Σ q xᵀ, ∂/∂G from W = … + Gᵀ − G.
    on = (z.detach() > 0).double()
    q = torch.stack(
        [torch.linalg.solve(torch.eye(7).double() - d[:, None] * W.mT, d * v) for d, v in zip(on, g, strict=True)]
    )
    outer = q.mT @ z.detach()
    expected: dict[str, Tensor] = {"U.bias": q.sum(0), "U.weight": q.mT @ x, "G.weight": outer.mT - outer}
    gradients = {name: weight.grad for name, weight in layer.named_parameters()}
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-9, atol=1e-9)


def test_textbook_and_ours_agree_when_both_are_solved_tightly() -> None:
    layer, linear = _textbook()
    head = torch.nn.Linear(7, 10).double()
    ours = Network(mondeq.EquilibriumLayer(linear, tol=1e-13), head)
    textbook = Network(layer, head)
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), textbook(x), rtol=1e-9, atol=1e-9)
    for one, other in zip(
        torch.autograd.grad(ours(x).square().sum(), ours.weights()),
        torch.autograd.grad(textbook(x).square().sum(), textbook.weights()),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_textbook_stops_on_the_relative_change_of_the_batch() -> None:
    layer, _ = _textbook()
    x = torch.randn(4, 5, dtype=torch.float64)
    layer.tol = 1e-2
    loose = layer(x)
    few = layer.forward_steps
    layer.tol = 1e-10
    tight = layer(x)
    assert 1 < few < layer.forward_steps < layer.max_steps
    assert (loose - tight).norm() < 0.05 * tight.norm()


@pytest.mark.parametrize("training", [True, False])
def test_as_accurate_is_at_least_as_accurate(training: bool) -> None:
    pair = Pair.random(12, 9, 4, 2, training=training)
    target, reached = pair.outcomes["textbook"], pair.outcomes["mondeq, as accurate"]
    assert reached["error_worst_sample"] <= target["error_worst_sample"]
    assert reached["tolerance"] <= pair.outcomes["mondeq"]["tolerance"]
    assert pair.as_accurate.layer.tol == reached["tolerance"]
    assert pair.ours.training is training


def test_training_step_leaves_the_weights_as_they_are() -> None:
    pair = Pair.random(12, 9, 4, 2, training=True)
    for network in (pair.textbook, pair.ours):
        step = TrainingStep(network, pair.batches, fused=None)
        for _ in range(3):
            step()
        assert all(w.grad is not None and bool((w.grad != 0).any()) for w in step.network.weights())
        assert all(map(torch.equal, step.network.weights(), network.weights()))


def test_every_method_reaches_the_same_point() -> None:
    rows = count_steps(mondeq.Dense(12, 9, 2.0), 2.0, torch.randn(6, 12))
    for name, row in rows.items():
        assert row["success"], name
        assert row["error_worst_sample"] < 1e-3, name
        assert row["products"] >= row["steps"] >= 2, name


def test_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    shapes = {
        "U.weight": (2, 1, 3, 3),
        "U.bias": (2,),
        "A.weight": (2, 2, 3, 3),
        "B.weight": (2, 2, 3, 3),
        "g": (),
        "h": (),
    }
    tensors = {f"mon.linear_module.{name}": torch.rand(shape) for name, shape in shapes.items()}
    tensors |= {"Wout.weight": torch.rand(10, 98), "Wout.bias": torch.rand(10)}
    torch.save(tensors, tmp_path / "old.pt")
    with pytest.raises(TypeError, match="holds no dense network but a Conv2d"):
        load_checkpoint(tmp_path / "old.pt", 1.0)


def test_tasks_take_turns() -> None:
    calls: list[str] = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, seconds=0.0)
    assert "".join(calls[-6:]) == "abbaab"
    assert {name: len(times) for name, times in timings.rounds.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_round_by_round() -> None:
    timings = Timings({"slow": [2.0, 40.0, 6.0], "fast": [1.0, 10.0, 2.0]})
    assert timings.ratio("slow", "fast") == Quartiles(3.0, 2.5, 3.5)
    assert timings.milliseconds("fast").median == pytest.approx(2000)
    assert timings.fastest("slow") == 2.0


def test_table_and_json_hold_every_kind_of_entry(tmp_path: Path) -> None:
    lines = table(
        "Title", ("", "x"), [("a", None), ("b", 0.125), ("c", Quartiles(1.0, 0.5, 2.0)), ("d", 7)]
    ).splitlines()
    assert lines[0] == "Title"
    assert [line.split(maxsplit=1)[1] for line in lines[4:-1]] == ["–", "0.12", "1 [0.5, 2]", "7"]
    write_json(tmp_path / "x.json", {"a": [math.inf, 1.5], "b": Quartiles(1.0, 0.5, 2.0), "c": None})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {
        "a": ["inf", 1.5],
        "b": {"median": 1.0, "low": 0.5, "high": 2.0},
        "c": None,
    }
