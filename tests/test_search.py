"""Finding the nearest keys: every path against a numpy search over the same keys, ties and rounding included."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import pytest
from fake_memory import FakeMemory
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import (
    ENCODER,
    NUM_STEPS,
    LocalMemory,
    Policy,
    Store,
    assert_close,
    assert_same,
    build_until,
    built,
    open_version,
    queries_at,
    search,
    take,
    use_indexes,
    wide_table,
)

from memory_index import exact_scan
from memory_index.errors import UsageError
from memory_index.leakage import LeakError

KeyGroup, Ranges = search.KeyGroup, search.Ranges


def by_numpy(keys: np.ndarray, query: np.ndarray, visible: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k nearest visible keys, in float64, by (distance, row)."""
    squared = np.square(keys.astype(np.float64) - query.astype(np.float64)).sum(axis=1)
    rows = np.flatnonzero(visible)
    return rows[np.lexsort((rows, squared[rows]))][:k]


@st.composite
def searches(draw: st.DrawFn) -> tuple:
    """Keys on a coarse grid (many exact ties) far from zero (so that a matrix product rounds), ranges, exclusions."""
    seed, n, k = draw(st.integers(0, 10**6)), draw(st.integers(1, 120)), draw(st.integers(1, 30))
    num_values, offset = draw(st.sampled_from([1, 2, 50])), draw(st.sampled_from([0.0, 1.0, 300.0, 4000.0]))
    random = np.random.default_rng(seed)
    keys = (random.integers(0, num_values, size=(n, 6)) * 0.25 + offset).astype(np.float32)
    queries = np.concatenate([keys[random.integers(0, n, size=4)], keys[:1] + np.float32(0.25)])
    first = draw(st.integers(0, n))
    last = draw(st.integers(first, n))
    before = random.integers(first, last + 1, size=len(queries))
    after = random.integers(before, last + 1) if draw(st.booleans()) else np.full(len(queries), last)
    excluded = random.random(n) < 0.4 if draw(st.booleans()) else None
    return keys, queries, Ranges(first, before, after, last), k, excluded


@given(searches())
@settings(max_examples=150)
def test_scan_finds_what_numpy_finds(case: tuple) -> None:
    keys, queries, ranges, k, excluded = case
    squared, rows = search.scan(KeyGroup(keys=keys), queries, ranges, k, excluded=excluded)
    place = np.arange(len(keys))
    for q, query in enumerate(queries):
        visible = (place >= ranges.first) & (place < ranges.before[q]) | (place >= ranges.after[q]) & (
            place < ranges.last
        )
        if excluded is not None:
            visible &= ~excluded
        expected = by_numpy(keys, query, visible, k)  # sums of few squares of quarters: exact in float32 too
        np.testing.assert_array_equal(rows[q, : len(expected)], expected)
        assert (rows[q, len(expected) :] == -1).all()
        assert np.isinf(squared[q, len(expected) :]).all()
        exact = np.square(keys[expected].astype(np.float64) - query).sum(axis=1)
        np.testing.assert_array_equal(squared[q, : len(expected)], exact.astype(np.float32))


def test_rounding_of_the_proposal_decides_nothing() -> None:
    """Fifty keys at one distance and k = 3: the answer is the first three, in whatever order rounding puts them."""
    keys = np.full((80, 4), 1000, dtype=np.float32)
    keys[30:] += 0.25
    ranges = Ranges(0, np.array([80]), np.array([80]), 80)
    _, rows = search.scan(KeyGroup(keys=keys), keys[79:] + np.float32(0.25), ranges, 3)
    np.testing.assert_array_equal(rows, [[30, 31, 32]])
    # The proposal is off by far more than the distances differ, which only the exact sum can tell.
    keys = np.full((200, 4), 5000, dtype=np.float32)
    keys[:, 0] += np.linspace(2, 0, 200, dtype=np.float32)
    _, rows = search.scan(
        KeyGroup(keys=keys), np.full((1, 4), 5000, dtype=np.float32), Ranges(0, *np.full((2, 1), 200), 200), 5
    )
    np.testing.assert_array_equal(rows, [[199, 198, 197, 196, 195]])


@given(st.integers(0, 10**6), st.integers(1, 60))
@settings(max_examples=30)
def test_the_final_distance_is_of_each_pair_alone(seed: int, m: int) -> None:
    random = np.random.default_rng(seed)
    keys, queries = (random.normal(size=(n, 53)).astype(np.float32) for n in (90, 7))
    rows = random.integers(-1, 90, size=(7, m))
    together = search.squared_distances(keys, queries, rows)
    for q in range(7):
        for place in range(m):
            alone = search.squared_distances(keys, queries[q : q + 1], rows[q : q + 1, place : place + 1])
            assert alone[0, 0] == together[q, place]
    exact = np.square(keys[rows].astype(np.float64) - queries[:, None]).sum(axis=-1)
    np.testing.assert_allclose(together[rows >= 0], exact[rows >= 0], rtol=1e-5)
    assert np.isinf(together[rows < 0]).all()
    query, slot = np.nonzero(rows >= 0)
    pairs = exact_scan.pair_distances(keys, queries, query, rows[query, slot])
    np.testing.assert_array_equal(pairs, together[query, slot])


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> LocalMemory:
    return open_version(built(tmp_path_factory.mktemp("search")))


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("scope", ["own", "joint", "pooled"])
@pytest.mark.parametrize("view", ENCODER.views)
def test_every_key_space_agrees_with_brute_force(memory: LocalMemory, scope: str, view: int, policy: Policy) -> None:
    asked = queries_at(wide_table(), range(35, NUM_STEPS, 5), policy)
    found, expected = (m.search(asked, 15, scopes=(scope,), views=(view,)) for m in (memory, FakeMemory.of(memory)))
    assert found.valid.any()
    assert_close(found, expected)


def test_flat_windows_find_flat_windows_only(memory: LocalMemory) -> None:
    windows, asked = memory.windows, queries_at(wide_table(), range(100, NUM_STEPS, 3))
    for scopes in (("own", "joint"), ("pooled",)):
        found = memory.search(asked, 300, scopes=scopes)
        seen = set()
        for v, space in enumerate(found.spaces):
            view = windows.views.index(space.view)
            for b, n in np.ndindex(found.row.shape[:2]):
                is_flat = asked.context[b, n, -space.view :].std() < 1e-3
                rows = found.row[b, n, v][found.valid[b, n, v]]
                assert (windows.flat[rows, view] == is_flat).all()
                seen.add((bool(is_flat), len(rows) > 0))
        assert {(True, True), (False, True)} <= seen


@pytest.mark.parametrize("factory", ["HNSW16", "IVF4,Flat", "IVF2,SQ8"])
def test_an_index_is_used_guarded_and_exact_where_it_comes_back_short(
    factory: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_indexes(monkeypatch)
    memory = open_version(built(tmp_path, factory=factory))
    assert all(group.index is not None for group in memory.segments[0].groups[memory.manifest.spaces[0].space])
    asked = queries_at(wide_table(), range(60, NUM_STEPS, 4))
    calls = []
    through_index = search._search_index
    monkeypatch.setattr(search, "_search_index", lambda *a: calls.append(a) or through_index(*a))
    for scope in ("own", "joint", "pooled"):
        found, expected = (m.search(asked, 5, scopes=(scope,)) for m in (memory, FakeMemory.of(memory)))
        if scope == "joint":  # other moments may be found, and at those a series may be of another flatness
            assert (found.valid == expected.valid).mean() > 0.95
        else:
            np.testing.assert_array_equal(found.valid, expected.valid)
            assert (found.distance >= expected.distance - 1e-3)[found.valid].all()
        both = found.valid & expected.valid
        assert np.isclose(found.distance, expected.distance, rtol=1e-3)[both].mean() > 0.7
    assert calls
    # Something was answered without any scan.
    monkeypatch.setattr(search, "scan", lambda *_, **__: pytest.fail("scanned"))
    last = queries_at(wide_table(), [NUM_STEPS - 1], series=["load"])
    assert memory.search(last, 5, scopes=("own",)).valid.all()


def test_an_index_that_answers_with_late_rows_is_refused(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard after the guard: were the filter behind FAISS broken, the result would still refuse to exist."""
    use_indexes(monkeypatch)
    memory = open_version(built(tmp_path, factory="HNSW16"), threads=1)
    asked = queries_at(wide_table(), range(150, 200, 10))

    def unfiltered(group: object, queries: np.ndarray, ranges: object, k: int, excluded: object) -> tuple:
        rows = group.index.propose(queries, k)
        return search.nearest(search.squared_distances(group.keys, queries, rows), rows, k)

    monkeypatch.setattr(search, "_search_index", unfiltered)
    for policy in Policy:
        with pytest.raises(LeakError, match="not admissible"):
            memory.search(replace(asked, policy=policy), 5)


def test_answers_do_not_depend_on_the_number_of_threads(tmp_path: object) -> None:
    version = built(tmp_path)
    asked = queries_at(wide_table(), range(40, NUM_STEPS))
    expected = open_version(version, threads=1).search(asked, 9)
    for threads in (2, 5):
        assert_same(open_version(version, threads=threads).search(asked, 9), expected)
    before = faiss.omp_get_max_threads()
    open_version(version, threads=1).search(take(asked, slice(0, 1)), 9)
    assert faiss.omp_get_max_threads() == before  # the caller's setting is not ours to change


class Whimsical:
    """An index that leaves out keys at random, other ones for each filter and each query."""

    can_filter, most = True, 10**6

    def __init__(self, keys: np.ndarray) -> None:
        self.keys, self.asked = keys, []

    def __len__(self) -> int:
        return len(self.keys)

    def propose(self, queries: np.ndarray, num: int, within: search.Within | None = None) -> np.ndarray:
        self.asked.append((within, len(queries)))
        found = np.full((len(queries), num), -1, dtype=np.int64)
        for line, query in zip(found, queries, strict=True):
            random = np.random.default_rng([num, *np.ravel(within or ()), *query.view(np.uint32)])
            named = np.zeros(len(self), dtype=bool)
            for first, end in within or ((0, len(self)),):
                named[first:end] = True
            rows = by_numpy(self.keys, query, named & (random.random(len(self)) < 0.7), num)
            line[: len(rows)] = rows
        return found


@pytest.mark.parametrize("hidden", [0, 90, 300])
def test_what_an_index_that_filters_answers_does_not_depend_on_the_batch(
    hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries close in time share a filter, but not one that is made of their ranges."""
    monkeypatch.setattr(search, "EXACT_ROWS", 40)
    for name in ("SPARE", "OVERFETCH"):  # so that the first question leaves most of them short
        monkeypatch.setattr(search, name, 0)
    random = np.random.default_rng(3)
    keys = np.cumsum(random.standard_normal((1000, 4)), axis=0, dtype=np.float32)  # what is near in time is near
    group = KeyGroup(keys=keys, index=Whimsical(keys))
    before = random.integers(150, 600, size=60)
    after = before + hidden if hidden else np.full(60, 1000)
    queries = keys[before + 45]  # the nearest are hidden
    ranges = Ranges(20, before, after, 1000)
    together = search.search_group(group, queries, ranges, 5)
    lots = [num for within, num in group.index.asked if within is not None]
    assert sum(lots) > 30
    assert len(lots) <= 16
    for q in range(60):
        one = np.array([q])
        alone = search.search_group(group, queries[one], ranges.take(one), 5)
        for mine, ours in zip(alone, together, strict=True):
            np.testing.assert_array_equal(mine[0], ours[q])
        found = together[1][q]
        assert (((found >= 20) & (found < before[q])) | (found >= after[q])).all()


def test_an_unknown_factory_is_refused_even_where_nothing_needs_it(tmp_path: object) -> None:
    store, table = Store(tmp_path), wide_table()
    with pytest.raises(UsageError, match="'HSNW32' is not a FAISS factory"):
        build_until(store, table, table.series[0].times[259], factory="HSNW32")
    assert store.names() == ()


def test_an_index_that_cannot_be_trained_is_refused(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    use_indexes(monkeypatch)
    with pytest.raises(UsageError, match="IVF4096,Flat"):
        built(tmp_path, factory="IVF4096,Flat")


def test_recall_is_measured(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    use_indexes(monkeypatch)
    exact, poor = built(tmp_path, name="exact"), built(tmp_path, name="poor", factory="PQ1x1")
    assert {record.recall_at_10 for record in exact.manifest.spaces} == {1.0}
    assert min(record.recall_at_10 for record in poor.manifest.spaces) < 0.9


@pytest.mark.parametrize("decimals", [6, 1, 0], ids=["distinct", "ties", "all alike"])
@pytest.mark.parametrize("hidden", [0, 300, 2000])
@pytest.mark.parametrize("values", [50, 3000, 1 << 21])
def test_blocks_and_chunks_of_a_scan_do_not_change_it(
    decimals: int, hidden: int, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the final distance of every pair, sorted; one question alone gets the same bits as among many."""
    monkeypatch.setattr(exact_scan, "BLOCK_VALUES", values)
    monkeypatch.setattr(exact_scan, "BLOCK_QUERIES", 7)
    random = np.random.default_rng(decimals + hidden)
    keys = np.round(random.standard_normal((2003, 5)) * (decimals > 0), decimals).astype(np.float32)
    before = np.sort(random.integers(0, 2003, size=20))
    ranges = Ranges(3, np.maximum(before, 3), np.clip(before + hidden, 3, 1990) if hidden else np.full(20, 1990), 1990)
    excluded = random.random(2003) < 0.2
    place = np.arange(2003)
    seen = (place >= 3) & (place < 1990) & ((place < ranges.before[:, None]) | (place >= ranges.after[:, None]))
    distance = search.squared_distances(keys, keys[before], np.where(seen & ~excluded, place, -1))
    for k in (1, 50, 400):
        found, rows = search.scan(KeyGroup(keys=keys), keys[before], ranges, k, excluded=excluded)
        best = np.argsort(distance, axis=1, kind="stable")[:, :k]
        expected = np.take_along_axis(distance, best, axis=1)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(rows, np.where(np.isfinite(expected), best, -1))
        one = np.array([11])
        alone = search.scan(KeyGroup(keys=keys), keys[before[one]], ranges.take(one), k, excluded=excluded)
        np.testing.assert_array_equal(alone[0][0], found[11])
        np.testing.assert_array_equal(alone[1][0], rows[11])


def test_a_causal_search_keeps_no_more_times_than_it_needs(tmp_path):
    memory = open_version(built(tmp_path))
    memory.search(queries_at(wide_table(), [200]), 3)
    kept = memory._key_spaces._times
    assert {scope for _, scope, _ in kept} == {"own", "joint", "pooled"}
    for (_, scope, _), times in kept.items():
        assert not {"start_at", "end_at", "origin"} & vars(times).keys()
        assert np.shares_memory(times.known_at, memory.windows.known_at) == (scope == "pooled")
