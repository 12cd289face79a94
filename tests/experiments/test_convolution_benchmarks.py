"""The convolutional benchmarks run, and compare and count what they say. Nothing here is timed."""

import json
import time
from pathlib import Path

import pytest
import torch

import mondeq
from experiments.benchmarks import conv, scaling
from experiments.benchmarks.competitors import TrainingStep
from experiments.benchmarks.convolutions import (
    OurNetwork,
    TextbookNetwork,
    check_reference,
    convolution,
    new_head,
    random_batch,
    random_pair,
    textbook_copy,
)
from experiments.benchmarks.cost import PARTS, breakdown, count_work, machine_rates
from splitting.operators.torus import Torus

RATES = {"flops": 1e9, "bytes": 1e10}


def test_smoke_run_of_conv_prints_tables_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "conv.json"
    assert conv.main(["--smoke", "--json", str(path), "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    for title in ("Training step", "7 channels on", "Peak memory", "Where our step spends its time"):
        assert title in printed
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["seed"] == 3
    assert [result["channels"] for result in content["training"]] == [[5], [3, 4]]
    for result in content["training"]:
        assert result["speedup"]["low"] <= result["speedup"]["median"] <= result["speedup"]["high"]
        assert result["reference"]["residual"] < 1e-9
        assert result["reference"]["gradient"] < 1e-9
        for one in result["outcomes"].values():
            assert one["success"]
            assert one["forward_steps"] >= 1
            assert one["error_worst_sample"] < 0.1
            assert one["gradient_error"] < 0.2
    assert content["wide"]["right"]
    for result in content["memory"]:
        assert (result["few"]["forward_steps"], result["few"]["backward_steps"]) == (2, 2)
        assert (result["many"]["forward_steps"], result["many"]["backward_steps"]) == (20, 20)
        assert result["many"]["peak_mib"] > 0
    for step in content["cost"]["steps"]:
        assert sum(part["share"] for part in step["parts"].values()) == pytest.approx(1)


def test_smoke_run_of_scaling_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scaling.json"
    assert scaling.main(["--smoke", "--json", str(path)]) == 0
    assert "Cost per pixel" in capsys.readouterr().out
    content = json.loads(path.read_text(encoding="utf-8"))
    assert [network["channels"] for network in content["networks"]] == [[3], [3, 4]]
    for network in content["networks"]:
        first, second = network["sizes"]
        assert first["growth"] == {"median": 1.0, "low": 1.0, "high": 1.0}
        assert first["allowed"] == pytest.approx(1.3)
        assert second["allowed"] == pytest.approx(1.3 * 4 / 3)
        assert second["microseconds_per_pixel"] == pytest.approx(1e3 * second["milliseconds"]["median"] / (2 * 16 * 16))
        assert all(row["success"] and row["forward_steps"] >= 1 for row in network["sizes"])


@pytest.mark.parametrize("channels", [(3,), (3, 2), (2, 3, 4)])
def test_textbook_and_ours_agree_when_both_are_solved_tightly(channels: tuple[int, ...]) -> None:
    linear = convolution(channels, 8, m=0.5).double()
    head = new_head(linear).double()
    ours = OurNetwork(mondeq.EquilibriumLayer(linear, tol=1e-13, max_steps=2000), head)
    textbook = TextbookNetwork(textbook_copy(linear, 0.5, tol=1e-13), head)
    x = random_batch(3, 8)[0].double()
    torch.testing.assert_close(ours.flat(ours.layer(x)), textbook.flat(textbook.layer(x)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours(x), textbook(x), rtol=1e-9, atol=1e-9)
    for one, other in zip(
        torch.autograd.grad(ours(x).square().sum(), ours.weights()),
        torch.autograd.grad(textbook(x).square().sum(), textbook.weights()),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("channels", [(3,), (2, 3)])
def test_pair_is_equally_initialised_and_as_accurate(channels: tuple[int, ...]) -> None:
    pair = random_pair(channels, 8, 4, 2)
    target, reached = pair.outcomes["textbook"], pair.outcomes["mondeq, as accurate"]
    assert all(map(torch.equal, pair.textbook.weights(), pair.ours.weights()))
    assert reached["error_worst_sample"] <= target["error_worst_sample"]
    assert reached["gradient_error"] <= target["gradient_error"]
    assert pair.as_accurate.layer.tol == reached["tolerance"] <= pair.ours.layer.tol == pair.textbook.layer.tol
    assert check_reference(pair, 2)["residual"] < 1e-9


def test_reference_check_notices_another_network() -> None:
    pair = random_pair((3,), 8, 4, 1)
    with torch.no_grad():
        pair.ours.layer.linear.F.add_(1)
    checked = check_reference(pair, 2)
    assert checked["residual"] > 1e-3
    assert checked["gradient"] > 1e-3


def test_work_is_counted_by_part() -> None:
    torus, symbol = Torus(6, 6), torch.rand(24, 4, 4)

    def step() -> None:
        spectrum = torus.analyse(torch.ones(6, 6, 2, 3))
        torch.bmm(symbol, spectrum).mT.relu()

    counts = count_work(step, RATES)
    # (8, 6) times (6, 36), then 4 times (12, 12) times (12, 6); the products of symbols.
    assert counts["transforms"]["flops"] == 2 * (8 * 6 * 36 + 4 * 12 * 12 * 6)
    assert counts["channel products"]["flops"] == 2 * 24 * 4 * 4 * 3
    assert counts["channel products"]["bytes"] == 4 * 24 * (4 * 4 + 2 * 4 * 3)
    # Ones written; the result of the product read, and written once more. Its transpose is a view.
    assert counts["everything else"]["bytes"] == 4 * (6 * 6 * 2 * 3 + 2 * 24 * 4 * 3)
    assert counts["everything else"]["flops"] == 0
    product = counts["channel products"]
    assert product["arithmetic_floor"] == pytest.approx(product["flops"] / RATES["flops"])
    assert product["floor"] == pytest.approx(max(product["flops"] / 1e9, product["bytes"] / 1e10))


def test_complex_products_and_inverses_count_as_real_ones() -> None:
    matrix = torch.eye(4, dtype=torch.complex64) + torch.zeros(3, 4, 4)

    def step() -> None:
        torch.linalg.inv_ex(matrix)
        torch.matmul(matrix, matrix)

    assert count_work(step, RATES)["everything else"]["flops"] == 4 * 2 * (3 * 4**3 + 3 * 4**3)


def test_breakdown_covers_the_step_and_leaves_the_library_as_it_was() -> None:
    linear = convolution((3,), 8)
    network = OurNetwork(mondeq.EquilibriumLayer(linear, tol=1e-2), new_head(linear))
    before = Torus.analyse, Torus.synthesise, torch.bmm
    parts = breakdown(TrainingStep(network, [random_batch(2, 8)], fused=None), RATES, 3)
    assert tuple(parts) == PARTS
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    for part in parts.values():
        assert part["seconds"] > 0
        assert 0 < part["arithmetic_floor"] <= part["floor"]
    assert (Torus.analyse, Torus.synthesise, torch.bmm) == before


def test_rates_are_of_the_fastest_run() -> None:
    start = time.perf_counter()
    rates = machine_rates(size=32, megabytes=1, repeats=2)
    seconds = time.perf_counter() - start
    assert rates["flops"] > 2 * 32**3 / seconds
    assert rates["bytes"] > 2 * 2**20 / seconds
