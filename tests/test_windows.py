"""Arithmetic of windows: origins, steps that are not hours, and where a stored window lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_fixtures import (
    START,
    EncoderConfig,
    Step,
    Store,
    WindowSpec,
    append,
    build_until,
    known_until,
    open_version,
    origin_rows,
    ragged_table,
)

from memory_index.errors import DataError, UsageError
from memory_index.windows import check_views, cut

BERLIN, SANTIAGO, HAVANA = "Europe/Berlin", "America/Santiago", "America/Havana"
GRIDS = {
    "hours": (Step(frequency="h"), "2021-03-01"),
    "hours in a time zone": (Step(frequency="h", time_zone=BERLIN), "2021-03-27"),
    "quarters of an hour": (Step(frequency="15min"), "2021-03-01"),
    "days": (Step(frequency="D"), "2021-03-01"),
    "days in a time zone": (Step(frequency="D", time_zone=BERLIN), "2021-03-20"),
    "days of which one has no midnight": (Step(frequency="D", time_zone=SANTIAGO), "2024-08-25"),
    "days of which one has two midnights": (Step(frequency="D", time_zone=HAVANA), "2024-10-25"),
    "weeks of which one begins without a midnight": (Step(frequency="W-SUN", time_zone=SANTIAGO), "2024-08-04"),
    "working days": (Step(frequency="B"), "2021-03-01"),
    "weeks": (Step(frequency="W-SUN"), "2021-03-07"),
    "months": (Step(frequency="MS"), "2021-01-01"),
    "ends of months": (Step(frequency="ME"), "2020-12-31"),
    "ends of months in a time zone": (Step(frequency="ME", time_zone=BERLIN), "2020-12-31"),
    "quarters": (Step(frequency="QS"), "2020-01-01"),
    "years": (Step(frequency="YS"), "1990-01-01"),
}


def grid_of(name: str, num_steps: int = 40) -> tuple[Step, np.ndarray]:
    step, day = GRIDS[name]
    start = pd.Timestamp(day, tz=step.time_zone)
    naive = start.tz_convert("UTC").tz_localize(None) if step.time_zone else start
    return step, step.range(naive.to_datetime64().astype("datetime64[ns]"), num_steps)


@pytest.mark.parametrize("name", GRIDS)
def test_steps_forward_and_back(name: str) -> None:
    step, times = grid_of(name)
    assert times.dtype == np.dtype("datetime64[ns]")
    assert len(times) == 40
    assert (np.diff(times) > np.timedelta64(0)).all()
    for num in (0, 1, 7, 25):
        np.testing.assert_array_equal(step.add(times[: 40 - num], num), times[num:])
        np.testing.assert_array_equal(step.add(times[num:], -num), times[: 40 - num])
    square = times[:36].reshape(6, 6)
    np.testing.assert_array_equal(step.add(square, 3), times[3:39].reshape(6, 6))
    assert step.add(times[:0], 3).shape == (0,)


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_a_time_may_be_text_or_one_of_python_pandas_or_numpy(zone: str | None) -> None:
    step = Step(frequency="h", time_zone=zone)
    expected = np.datetime64("2022-12-24" if zone is None else "2022-12-23T23:00", "ns")
    day = pd.Timestamp("2022-12-24")
    for time in ("2022-12-24", day, day.to_pydatetime(), day.to_datetime64()):
        assert step.parse(time) == expected
    aware = pd.Timestamp("2022-12-24", tz="Europe/Berlin")
    if zone is None:
        with pytest.raises(UsageError, match="it has a UTC offset, but the table's times have none"):
            step.parse(aware)
    else:
        assert step.parse(aware) == expected


def test_a_day_in_a_time_zone_may_have_23_hours() -> None:
    step, times = grid_of("days in a time zone")
    assert not step.is_fixed
    hours = set(np.diff(times).astype("timedelta64[h]").astype(int))
    assert hours == {23, 24}
    assert {step.local(times[i : i + 1])[0].hour for i in range(40)} == {0}
    assert step.isoformat(times[0]) == "2021-03-20T00:00:00+01:00"
    assert step.isoformat(times[20]) == "2021-04-09T00:00:00+02:00"
    assert GRIDS["days"][0].is_fixed
    assert GRIDS["hours in a time zone"][0].is_fixed


def test_a_day_without_a_midnight_begins_at_its_first_moment() -> None:
    step, times = grid_of("days of which one has no midnight")
    shown = [step.isoformat(time) for time in times[13:16]]
    assert shown == ["2024-09-07T00:00:00-04:00", "2024-09-08T01:00:00-03:00", "2024-09-09T00:00:00-03:00"]
    for typed in (shown[1], "2024-09-08", "2024-09-08 00:00", "2024-09-08 01:00"):
        assert step.parse(typed) == times[14]
    for first, last in ((0, 14), (14, 14), (14, 39)):
        np.testing.assert_array_equal(step.until(times[first], times[last]), times[first : last + 1])
    with pytest.raises(UsageError, match="twice or not at all"):
        Step(frequency="h", time_zone=SANTIAGO).parse("2024-09-08 00:00")


def test_a_day_with_two_midnights_begins_at_the_first() -> None:
    step, times = grid_of("days of which one has two midnights")
    assert step.isoformat(times[9]) == "2024-11-03T00:00:00-04:00"
    assert step.parse("2024-11-03") == times[9]
    assert step.parse("2024-11-03T00:00-05:00") == times[9] + np.timedelta64(1, "h")
    np.testing.assert_array_equal(np.diff(times)[8:11].astype("timedelta64[h]").astype(int), [24, 25, 24])


@pytest.mark.parametrize(("zone", "skipped"), [(BERLIN, "2024-03-31 02:30"), (SANTIAGO, "2024-09-08 01:00")])
def test_a_step_that_would_begin_at_a_skipped_time_of_day_is_refused(zone: str, skipped: str) -> None:
    step, day = Step(frequency="D", time_zone=zone), pd.Timedelta(days=1)
    before, after = (step.parse(str(pd.Timestamp(skipped) + distance)) for distance in (-day, day))
    for count in (
        lambda: step.add(np.array([before]), 1),
        lambda: step.range(before, 3),
        lambda: step.until(before, after),
    ):
        with pytest.raises(DataError, match=f"begin at {skipped}:00, which the clock in {zone} skips") as caught:
            count()
        assert "as dates" in caught.value.hint
    assert step.add(np.array([before]), 2) == [after]


@given(
    missing=st.sets(st.integers(0, 39), max_size=6),
    num=st.integers(0, 40),
    lookback=st.integers(2, 8),
    horizon=st.integers(1, 6),
    stride=st.integers(1, 6),
    with_future=st.booleans(),
)
def test_origins_are_the_rows_with_a_whole_window(
    missing: set[int], num: int, lookback: int, horizon: int, stride: int, with_future: bool
) -> None:
    values = np.where(np.isin(np.arange(num), list(missing)), np.nan, 1.0)
    spec = WindowSpec(lookback=lookback, horizon=horizon, stride=stride, max_missing=0.0)
    ahead = horizon if with_future else 0
    expected = [
        row
        for row in range(lookback - 1, num - ahead)
        if (row - lookback + 1) % stride == 0 and np.isfinite(values[row - lookback + 1 : row + ahead + 1]).all()
    ]
    found = origin_rows(values, spec, with_future=with_future)
    assert found.dtype == np.int64
    assert found.tolist() == expected
    longer = np.concatenate([values, np.ones(7)])  # a longer series only adds origins at the end
    assert origin_rows(longer, spec, with_future=with_future)[: len(found)].tolist() == expected


@given(
    missing=st.sets(st.integers(0, 39), max_size=25),
    lookback=st.integers(2, 8),
    horizon=st.integers(1, 6),
    share=st.sampled_from([0.1, 0.5, 0.75]),
    with_future=st.booleans(),
)
def test_origins_are_the_rows_of_which_a_view_and_the_future_are_known_enough(
    missing: set[int], lookback: int, horizon: int, share: float, with_future: bool
) -> None:
    values = np.where(np.isin(np.arange(40), list(missing)), np.nan, 1.0)
    spec = WindowSpec(lookback=lookback, horizon=horizon, max_missing=share)
    known, ahead = np.isfinite(values), horizon if with_future else 0
    views = (2, lookback)

    def usable(row: int) -> bool:
        enough = any((~known[row + 1 - view : row + 1]).sum() <= share * view + 1e-9 for view in views)
        return enough and (not with_future or known[row + 1 : row + 1 + horizon].any())

    expected = [row for row in range(lookback - 1, 40 - ahead) if usable(row)]
    if not missing:
        expected = list(range(lookback - 1, 40 - ahead))
    assert origin_rows(values, spec, views=views, with_future=with_future).tolist() == expected


@pytest.mark.parametrize(
    "wrong", [{"lookback": 1}, {"horizon": 0}, {"stride": 0}, {"known_delay": -1}], ids=lambda wrong: next(iter(wrong))
)
def test_a_window_that_makes_no_sense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} is .* must be at least"):
        WindowSpec(**{"lookback": 8, "horizon": 2, **wrong})


def test_views_fit_the_lookback() -> None:
    spec = WindowSpec(lookback=24, horizon=2)
    check_views((2, 24), spec)
    for views in ((25,), (1,), (4, 4), ()):
        with pytest.raises(UsageError, match="view"):
            check_views(views, spec)


def test_cut_keeps_the_shape_of_its_rows() -> None:
    values = np.arange(20.0)
    np.testing.assert_array_equal(cut(values, np.array([[0, 17], [3, 4]]), 3)[0], [[0, 1, 2], [17, 18, 19]])
    with pytest.raises(IndexError):
        cut(values, np.array([18]), 3)


def test_a_stored_window_lies_where_its_series_has_it(tmp_path: Path) -> None:
    """Ragged series, two segments, a delay: every row against its own table."""
    table = ragged_table(120)
    last = table.series[0].times[90]
    window = WindowSpec(lookback=12, horizon=4, known_delay=3)
    first = build_until(
        Store(tmp_path), known_until(table, last), last, window=window, encoder=EncoderConfig(views=(12,))
    )
    windows = open_version(append(Store(tmp_path), first.ref, table)).windows
    rows = np.arange(len(windows))
    spans, hour = windows.spans(rows), np.timedelta64(1, "h")
    seen = set()
    for row in rows:
        series = table.series[windows.series[row]]
        place = int(np.searchsorted(series.times, windows.origin(row)))
        seen.add((int(windows.series[row]), place))
        assert series.times[place] == windows.origin(row)
        assert spans.start_at[row] == series.times[place - 11]
        assert spans.end_at[row] == series.times[place + 4]
        assert spans.known_at[row] == series.times[place + 4] + 3 * hour
        np.testing.assert_array_equal(windows.contexts(rows[row]), series.values[place - 11 : place + 1].astype("f4"))
        np.testing.assert_array_equal(windows.futures(rows[row]), series.values[place + 1 : place + 5].astype("f4"))
    assert seen == {(n, int(r)) for n, s in enumerate(table.series) for r in origin_rows(s.values, window)}
    assert len(seen) == len(windows)
    assert spans.start_at.min() >= START
    for start, end in ((0, first.manifest.num_rows), (first.manifest.num_rows, len(windows))):
        order = np.lexsort((windows.series[start:end], windows.known_at[start:end]))
        np.testing.assert_array_equal(order, np.arange(end - start))  # rows of a segment: by (known_at, series)
