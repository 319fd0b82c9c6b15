"""One contract for every memory: whatever answers must answer like this.

To put another memory under the contract, add it to `MEMORIES`: a function that is given an opened version, the folder
that it lies in and a clean-up stack, and returns something that answers for that version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from fake_memory import FakeMemory
from memory_fixtures import (
    ENCODER,
    NUM_STEPS,
    appended,
    assert_close,
    assert_same,
    between,
    built,
    compact,
    open_version,
    queries_at,
    take,
    use_indexes,
    wide_table,
)
from service_fixtures import served

from memory_index.errors import DataError, IncompatibleError, NotFoundError, UsageError
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.memory import Memory
from memory_index.milvus.publish import publish
from memory_index.milvus.searching import open_milvus
from memory_index.remote import RemoteMemory
from memory_index.types import Filter, Queries
from memory_index.versions.store import Store
from memory_index.wire import Limits

BY_QUERY = ("row", "distance", "shape_distance", "value_distance", "query_location", "query_spread")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A memory, and what a brute-force search over the same keys answers. exact: whether it must be the same.

    quick: whether it can be asked of hundreds of moments in a test.
    """

    memory: Memory
    reference: FakeMemory
    exact: bool
    quick: bool


def opened_build(folder: Path, **options: object) -> LocalMemory:
    return open_version(built(folder, **options), threads=2)


def opened_append(folder: Path) -> LocalMemory:
    return open_version(appended(folder, built(folder), 263, 300), threads=2)


def opened_compact(folder: Path) -> LocalMemory:
    return open_version(compact(Store(folder), appended(folder, built(folder), 263, 300).ref), threads=1)


def opened_hnsw(folder: Path) -> LocalMemory:
    return opened_build(folder, factory="HNSW16")


def opened_milvus(folder: Path) -> LocalMemory:
    # One view, one segment and a graph, because Milvus Lite is slow; two segments are in test_milvus.py.
    version, address = built(folder, encoder=replace(ENCODER, views=(12,))), f"milvus:{folder / 'milvus.db'}"
    publish(version, address, index="HNSW")
    return open_milvus(version, address, threads=2)


def remote(folder: Path, stack: ExitStack) -> RemoteMemory:
    """The newest version of a folder, behind a service that allows less at once than is asked here."""
    limits = Limits(max_windows=64, max_slots=20_000)
    return RemoteMemory(f"{stack.enter_context(served(folder, ['small'], limits=limits))}/small")


VERSIONS: dict[str, Callable[[Path], LocalMemory]] = {
    "local": opened_build,
    "hnsw": opened_hnsw,
    "appended": opened_append,
    "compacted": opened_compact,
    "fake": opened_build,
    "milvus": opened_milvus,
    "remote": opened_append,
}
MEMORIES: dict[str, Callable[[LocalMemory, Path, ExitStack], Memory]] = {
    "local": lambda version, *_: version,
    "hnsw": lambda version, *_: version,
    "appended": lambda version, *_: version,
    "compacted": lambda version, *_: version,
    "fake": lambda version, *_: FakeMemory.of(version),
    "milvus": lambda version, *_: version,
    "remote": lambda _, folder, stack: remote(folder, stack),
}
APPROXIMATE = ("hnsw", "milvus")  # their candidates are not all rows, even where few rows are asked about


@pytest.fixture(scope="module", params=sorted(MEMORIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with ExitStack() as stack:
        if request.param in APPROXIMATE:
            use_indexes(stack.enter_context(pytest.MonkeyPatch.context()))
        folder = tmp_path_factory.mktemp(request.param)
        version = VERSIONS[request.param](folder)
        memory = MEMORIES[request.param](version, folder, stack)
        exact, quick = request.param not in APPROXIMATE, request.param != "milvus"
        yield Case(memory=memory, reference=FakeMemory.of(version), exact=exact, quick=quick)


@pytest.fixture(scope="module")
def origins() -> Queries:
    """300 moments: from before anything is known to far behind the end of every version."""
    return queries_at(wide_table(), range(NUM_STEPS - 320, NUM_STEPS - 20))


def with_policy(queries: Queries, policy: Policy) -> Queries:
    return replace(queries, policy=policy)


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("scope", ["own", "joint", "pooled"])
def test_the_nearest_admissible_windows_are_found(case: Case, origins: Queries, scope: str, policy: Policy) -> None:
    asked = take(with_policy(origins, policy), slice(0, 300, 9))
    found, expected = (memory.search(asked, 7, scopes=(scope,)) for memory in (case.memory, case.reference))
    if case.exact:
        assert_close(found, expected)
    else:
        hits = (expected.row[..., None] == found.row[..., None, :]).any(axis=-1)[expected.valid]
        ties = np.isclose(found.distance, expected.distance, rtol=1e-5)[expected.valid]
        assert (hits | ties).mean() >= 0.98


@pytest.mark.parametrize("policy", Policy)
def test_answers_are_sorted_unique_and_admissible(case: Case, origins: Queries, policy: Policy) -> None:
    asked = take(with_policy(origins, policy), slice(0, 300, 7))
    for scopes in (None, ("pooled",)):
        found = case.memory.search(asked, 12, scopes=scopes)
        assert found.valid.any()
        windows, spec = found.windows, found.windows.spec
        for b, n, v in np.ndindex(found.row.shape[:3]):
            rows = found.row[b, n, v]
            num = int(found.valid[b, n, v].sum())
            assert (rows[:num] >= 0).all()
            assert (rows[num:] == -1).all()
            assert np.isinf(found.distance[b, n, v, num:]).all()
            assert len(set(rows[:num])) == num
            assert sorted(zip(found.distance[b, n, v, :num], rows[:num], strict=True)) == list(
                zip(found.distance[b, n, v, :num], rows[:num], strict=True)
            )
            for row in rows[:num]:
                first = windows.times[windows.origin_position[row] - spec.lookback + 1]
                last = windows.times[windows.origin_position[row] + spec.horizon]
                origin = asked.origin[b]
                if policy is Policy.CAUSAL:
                    assert last <= origin
                else:
                    hour = np.timedelta64(1, "h")
                    assert last < origin - (spec.lookback - 1) * hour or first > origin + spec.horizon * hour
                if found.spaces[v].scope != "pooled":
                    assert windows.series_ids[windows.series[row]] == asked.series_id[n]


def test_distance_is_made_of_its_parts(case: Case, origins: Queries) -> None:
    w = case.reference.encoder.config.shape_weight
    for scopes, weight, rest in ((("own", "joint"), w, 1 - w), (("pooled",), 1.0, 0.0)):
        found = case.memory.search(take(origins, slice(0, 300, 20)), 9, scopes=scopes)
        valid = found.valid
        parts = weight * found.shape_distance[valid] ** 2 + rest * found.value_distance[valid] ** 2
        np.testing.assert_allclose(found.distance[valid] ** 2, parts, rtol=1e-4, atol=1e-5)
        assert np.isinf(found.shape_distance[~valid]).all()
        assert np.isinf(found.value_distance[~valid]).all()


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("scopes", [None, ("pooled",)])
def test_a_batch_of_300_and_of_1_agree_bit_for_bit(case: Case, origins: Queries, scopes: tuple, policy: Policy) -> None:
    asked = with_policy(take(origins, slice(0, 300, 1 if case.quick else 10)), policy)
    together = case.memory.search(asked, 10, scopes=scopes)
    answered = np.flatnonzero(together.valid.any(axis=(2, 3)).all(axis=1))
    some = case.memory.search(take(asked, answered), 10, scopes=scopes)
    forecasts, quantiles = some.forecast(), some.quantiles((0.1, 0.9))
    for place in range(0, len(answered), len(answered) // 6):
        b = answered[place]
        alone = case.memory.search(take(asked, slice(b, b + 1)), 10, scopes=scopes)
        for name in BY_QUERY:
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[b], err_msg=name)
        np.testing.assert_array_equal(alone.forecast()[0], forecasts[place])
        np.testing.assert_array_equal(alone.quantiles((0.1, 0.9))[0], quantiles[place])


def test_series_of_a_query_do_not_influence_each_other(case: Case, origins: Queries) -> None:
    asked = take(origins, slice(150, 170))
    together = case.memory.search(asked, 5, scopes=("own",))
    for n, name in enumerate(asked.series_id):
        alone = replace(asked, context=asked.context[:, n : n + 1], series_id=np.array([name]))
        found = case.memory.search(alone, 5, scopes=("own",))
        np.testing.assert_array_equal(found.row[:, 0], together.row[:, n])
        np.testing.assert_array_equal(found.distance[:, 0], together.distance[:, n])


def test_series_in_another_order_give_the_same_neighbours(case: Case, origins: Queries) -> None:
    asked, order = take(origins, slice(100, 140)), np.array([2, 0, 1])
    turned = replace(asked, context=asked.context[:, order], series_id=asked.series_id[order])
    straight, found = (case.memory.search(queries, 6) for queries in (asked, turned))
    assert {space.scope for space in found.spaces} == {"own", "joint", "pooled"}
    for name in BY_QUERY:
        np.testing.assert_array_equal(getattr(found, name), getattr(straight, name)[:, order], err_msg=name)
    np.testing.assert_array_equal(found.forecast(), straight.forecast()[:, order])


def test_more_neighbours_than_rows(case: Case, origins: Queries) -> None:
    asked = take(origins, slice(280, 300, 10))
    found = case.memory.search(asked, len(case.reference.windows) + 50, scopes=("own", "pooled"))
    windows = case.reference.windows
    for v, space in enumerate(found.spaces):
        flat = windows.flat[:, windows.views.index(space.view)]
        for n, name in enumerate(asked.series_id):
            mine = (
                windows.series == windows.series_ids.index(name)
                if space.scope == "own"
                else np.ones(len(windows), bool)
            )
            numbers = found.valid[:, n, v].sum(axis=1)
            # All versions end before these origins, so everything is admissible but windows of another flatness.
            assert set(numbers) <= {int((mine & flat).sum()), int((mine & ~flat).sum())}
            assert (numbers > 0).all()
    assert np.isfinite(found.forecast()).all()


def test_before_anything_is_known_there_is_no_neighbour(case: Case) -> None:
    table = wide_table()
    asked = queries_at(table, [35, 42])  # the first window is known at row 43
    found = case.memory.search(asked, 4)
    assert not found.valid.any()
    assert (found.row == -1).all()
    assert (found.series == -1).all()
    assert np.isinf(found.distance).all()
    assert np.isnat(found.known_at).all()
    assert (found.weights == 0).all()
    assert np.isnan(found.futures()).all()
    assert np.isnan(found.contexts()).all()
    assert np.isnan(found.space_forecasts()).all()
    with pytest.raises(NotFoundError, match="no admissible neighbour"):
        found.forecast()
    assert case.memory.search(queries_at(table, [43]), 4, scopes=("own",)).valid[0, 0, 0].sum() == 1


def test_no_queries_give_no_neighbours(case: Case, origins: Queries) -> None:
    found = case.memory.search(take(origins, slice(0, 0)), 4)
    assert found.row.shape == (0, 3, len(found.spaces), 4)
    assert found.forecast().shape == (0, 3, 8)


def test_ties_are_broken_by_row(case: Case) -> None:
    # Every window of `beat` is there once every 12 steps.
    found = case.memory.search(queries_at(wide_table(), [259], series=["beat"]), 5, scopes=("own",), views=(12,))
    assert (found.distance == found.distance[..., :1]).all()
    if case.exact:
        origin = case.reference.windows.origin(found.row[0, 0, 0])
        rows = np.searchsorted(wide_table().series[0].times, origin)
        np.testing.assert_array_equal(rows, 43 + 12 * np.arange(5) - 8 + (259 - 35) % 12)


def test_wrong_queries_are_refused(case: Case, origins: Queries) -> None:
    infinite = origins.context.copy()
    infinite[3, 1, 30] = np.inf
    with pytest.raises(DataError, match=r"series 'flat' at origin .* 5 steps before the origin"):
        replace(origins, context=infinite)
    with pytest.raises(UsageError, match="float32"):
        replace(origins, context=origins.context.astype(np.float64))
    with pytest.raises(UsageError, match="policy"):
        replace(origins, policy="causal")
    with pytest.raises(UsageError, match="origin"):
        replace(origins, origin=origins.origin[:5])
    shorter = replace(origins, context=origins.context[:, :, 1:])
    with pytest.raises(IncompatibleError):
        case.memory.search(shorter, 3)
    for options in ({"k": 0}, {"k": 3, "min_gap": -1}, {"k": 3, "scopes": ("mine",)}, {"k": 3, "scopes": ()}):
        with pytest.raises(UsageError):
            case.memory.search(origins, **options)  # type: ignore[arg-type]
    with pytest.raises(IncompatibleError):
        case.memory.search(origins, 3, views=(13,))


def test_an_unseen_series_is_answered_by_all_or_not_at_all(case: Case, origins: Queries) -> None:
    stranger = replace(
        origins, context=origins.context[150:160, :1], origin=origins.origin[150:160], series_id=np.array(["new"])
    )
    found = case.memory.search(stranger, 5)
    assert {space.scope for space in found.spaces} == {"pooled"}
    assert np.isfinite(found.forecast()).all()
    for scope in ("own", "joint"):
        with pytest.raises((IncompatibleError, NotFoundError)):
            case.memory.search(stranger, 5, scopes=(scope,))
    two = replace(origins, context=origins.context[:, :2], series_id=origins.series_id[:2])
    assert {space.scope for space in case.memory.search(two, 5).spaces} == {"own", "pooled"}
    with pytest.raises(IncompatibleError):
        case.memory.search(two, 5, scopes=("joint",))


def test_threads_get_the_same_bits(case: Case, origins: Queries) -> None:
    asked = [take(with_policy(origins, policy), slice(start, 300, 23)) for policy in Policy for start in range(4)]
    expected = [case.memory.search(queries, 6) for queries in asked]
    with ThreadPoolExecutor(6) as pool:
        for found, wanted in zip(pool.map(lambda q: case.memory.search(q, 6), asked * 2), expected * 2, strict=True):
            assert_same(found, wanted)


def test_filter_by_dates(case: Case, origins: Queries) -> None:
    asked = take(origins, slice(100, 300, 11))
    times = wide_table().series[0].times
    where = Filter(after=times[90], before=times[150])
    for scopes in (("own", "joint"), ("pooled",)):
        found, expected = (
            memory.search(asked, 5, scopes=scopes, where=where) for memory in (case.memory, case.reference)
        )
        origin = found.windows.origin(found.row[found.valid])
        assert origin.min() >= times[90]
        assert origin.max() <= times[150]
        np.testing.assert_array_equal(found.valid, expected.valid)
        if case.exact:
            assert_close(found, expected)
    inclusive = case.memory.search(asked, 5, scopes=("own",), where=Filter(after=times[100], before=times[100]))
    assert set(found.windows.origin(inclusive.row[inclusive.valid])) == {times[100]}
    nothing = case.memory.search(asked, 5, where=Filter(after=times[150], before=times[90]))
    assert not nothing.valid.any()


def test_filter_by_series(case: Case, origins: Queries) -> None:
    asked = take(origins, slice(100, 300, 11))
    where = Filter(series_id=("flat", "beat"))
    found = case.memory.search(asked, 5, where=where)
    assert {space.scope for space in found.spaces} == {"pooled"}
    assert {found.windows.series_ids[n] for n in found.series[found.valid]} == {"flat", "beat"}
    expected = case.reference.search(asked, 5, where=where)
    np.testing.assert_array_equal(found.valid, expected.valid)
    if case.exact:
        assert_close(found, expected)
    with pytest.raises(IncompatibleError):
        case.memory.search(asked, 5, scopes=("own",), where=where)
    with pytest.raises(NotFoundError):
        case.memory.search(asked, 5, where=Filter(series_id=("load", "lode")))


@pytest.mark.parametrize("min_gap", [1, 2, 13, 1000])
def test_neighbours_are_a_gap_apart(case: Case, origins: Queries, min_gap: int) -> None:
    asked = take(origins, slice(20, 300, 31))
    for scopes in (("own", "joint"), ("pooled",)):
        found, expected = (m.search(asked, 4, scopes=scopes, min_gap=min_gap) for m in (case.memory, case.reference))
        if case.exact:
            assert_close(found, expected)
        hours = found.windows.origin(np.maximum(found.row, 0)).astype("datetime64[h]").astype(np.int64)
        for b, n, v in np.ndindex(found.row.shape[:3]):
            taken = np.sort(hours[b, n, v][found.valid[b, n, v]])
            assert (np.diff(taken) >= min_gap).all()


def test_the_query_s_own_window_is_found_when_it_is_known(case: Case) -> None:
    found = case.memory.search(queries_at(between(wide_table(), 0, 250), [200]), 1, scopes=("own",))
    assert (found.distance[:, 0] > 0).all()  # not known at its own origin
    later = replace(queries_at(wide_table(), [200]), origin=wide_table().series[0].times[[208]])
    found = case.memory.search(later, 1, scopes=("own", "joint"))
    assert (found.distance[:, :2] == 0).all()


def test_a_gap_beyond_all_times_leaves_one_neighbour(case: Case, origins: Queries) -> None:
    asked = take(origins, slice(0, 300, 11))
    for scopes in (("own",), ("pooled",)):
        found = case.memory.search(asked, 4, scopes=scopes, min_gap=999_999_999)
        assert (found.valid.sum(axis=-1) <= 1).all()
        if case.exact:  # another index may miss the nearest with the one k and not with the other
            np.testing.assert_array_equal(found.row[..., 0], case.memory.search(asked, 1, scopes=scopes).row[..., 0])
