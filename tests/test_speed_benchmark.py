"""The benchmark of speed compares like with like: its turns, its brute force under the time guard, its exponents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.speed.brute_force import RawWindows, brute_force, normalised
from benchmarks.speed.expected import EXPECTED, table
from benchmarks.speed.growth import Point, cases, exponents, measure_case
from benchmarks.speed.stage import FULL, QUICK
from benchmarks.speed.turns import in_turns, medians, ratio
from benchmarks.synthetic import self_similar_table
from memory_index.leakage import Policy
from memory_index.windows import WindowSpec, origin_rows

SPEC, VIEW, K = WindowSpec(lookback=24, horizon=6), 24, 5


def test_turns_alternate_and_are_counted():
    order: list[str] = []
    times = in_turns({name: lambda _, name=name: order.append(name) for name in "ab"}, 3)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3}
    assert len(in_turns({"a": lambda _: None}, 5, budget=0.0)["a"]) == 1
    slow = {"slow": [2.0, 6.0, 4.0], "quick": [1.0, 2.0, 1.0]}
    assert ratio(slow, "slow", "quick") == 3
    assert medians(slow) == {"slow": 4.0, "quick": 1.0}


@pytest.mark.parametrize("policy", Policy)
def test_brute_force_finds_the_nearest_that_may_be_seen(policy):
    made = self_similar_table(2, 120)
    rows = origin_rows(made.series[0].values, SPEC)
    keys = RawWindows(made, rows, VIEW).keys("pooled")
    queries = normalised(made.series[1].values, rows, VIEW)
    distances, places = brute_force(keys, queries, rows, K, SPEC, policy)
    gap = np.tile(rows, 2) - rows[:, None]
    hidden = gap > -SPEC.horizon if policy is Policy.CAUSAL else np.abs(gap) < SPEC.length
    every = torch.cdist(queries.double(), keys.keys.double()).square().numpy()
    every = np.sort(np.where(hidden, np.inf, every), axis=1)[:, :K]
    whole = distances.double() + queries.double().square().sum(1)[:, None]
    np.testing.assert_allclose(whole.numpy(), every, rtol=1e-3, atol=1e-3)
    found = np.isfinite(every)
    assert not np.take_along_axis(hidden, places.numpy(), axis=1)[found].any()


def test_exponents_of_power_laws():
    points = [Point("windows", n, "build", 3e-4 * n**1.5) for n in (10, 100, 1000)]
    points += [Point("windows", n, "append", 0.2) for n in (10, 100, 1000)]
    assert exponents(points) == {("windows", "build"): pytest.approx(1.5), ("windows", "append"): pytest.approx(0)}
    assert "| windows, 10 to 1,000 | build | 0.0095 to 9.5 | 1.50 | 1.50 |" in table(points)


def test_what_is_measured_is_expected(tmp_path):
    for sizes in (FULL, QUICK):
        assert list(cases(sizes)) == list(EXPECTED)
    smallest = cases(QUICK)["windows"][0]
    found = measure_case(smallest, QUICK, tmp_path, with_build=True)
    assert set(found) == set(EXPECTED["windows"]) - {"build, graph", "search, graph"}
    assert set(measure_case(smallest, QUICK, tmp_path, with_build=False)) == set(EXPECTED["k"])
    assert not list(tmp_path.iterdir())
