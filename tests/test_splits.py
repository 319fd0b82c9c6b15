"""Splits: borders by rows and by time, and that no part's futures reach into another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from memory_fixtures import (
    HOURLY,
    Series,
    SeriesTable,
    Split,
    WindowSpec,
    origin_rows,
    part,
    ragged_table,
    wide_table,
    with_missing,
)

from memory_index.errors import DataError, UsageError
from memory_index.splits import part_origins, split_by_name, split_until

TIMES = wide_table(200).series[0].times
SPEC = WindowSpec(lookback=12, horizon=4)
PARTS = ("train", "val", "test")


def until(text: str, val: str | None = None) -> Split:
    return split_until(text, val, TIMES, HOURLY)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("70/10/20", (140, 160, 200)),
        ("33/33/34", (66, 132, 200)),
        ("80/0/20", (160, None, 200)),
        ("90/10/0", (180, 200, None)),
    ],
)
def test_percentages_are_rows(name: str, ends: tuple[int | None, ...]) -> None:
    split = split_by_name(name, TIMES)
    found = (split.train_until, split.val_until, split.test_until)
    assert found == tuple(None if end is None else str(TIMES[end - 1]) for end in ends)


def test_the_benchmark_s_split_leaves_the_rest_unused() -> None:
    times = HOURLY.range(TIMES[0], 17420)
    split = split_by_name("ett-hourly", times)
    assert (split.train_until, split.val_until, split.test_until) == tuple(str(times[n]) for n in (8639, 11519, 14399))
    with pytest.raises(DataError, match="needs 14400 rows, but the table has 200"):
        split_by_name("ett-hourly", TIMES)


@pytest.mark.parametrize("horizon", [96, 192, 336, 720])
def test_the_test_part_has_every_window_of_the_protocol(horizon: int) -> None:
    """The benchmark's counts: ETTh has 2785/2689/2545/2161 test windows, the first future at the first test row."""
    times = HOURLY.range(TIMES[0], 17420)
    series = Series(series_id="OT", times=times, values=np.zeros(17420))
    table = SeriesTable(step=HOURLY, layout="wide", series=(series,), source="ett.csv")
    split = split_by_name("ett-hourly", times)
    rows = part_origins(table, WindowSpec(lookback=512, horizon=horizon), split, "test")[0]
    assert len(rows) == {96: 2785, 192: 2689, 336: 2545, 720: 2161}[horizon]
    assert rows[0] == 11519
    assert rows[-1] + horizon == 14399


@pytest.mark.parametrize("name", ["70/10/20", "80/0/20", "60/40/0"])
@pytest.mark.parametrize("table", [wide_table(200), ragged_table(200)], ids=["wide", "ragged"])
def test_every_future_lies_in_one_part(name: str, table: object) -> None:
    split = split_by_name(name, TIMES)
    inside = {
        "train": (None, split.train_until),
        "val": (split.train_until, split.val_until),
        "test": (split.val_until or split.train_until, split.test_until),
    }
    seen = [set() for _ in table.series]
    for which in PARTS:
        low, high = inside[which]
        if high is None:
            with pytest.raises(DataError, match=f"has no {which} part"):
                part_origins(table, SPEC, split, which)
            continue
        for number, rows in enumerate(part_origins(table, SPEC, split, which)):
            series = table.series[number]
            expected = [
                row
                for row in range(11, len(series) - 4)
                if series.times[row + 4] <= np.datetime64(high)
                and (low is None or series.times[row + 1] > np.datetime64(low))
            ]
            assert rows.tolist() == expected
            assert not seen[number] & set(expected)
            seen[number] |= set(expected)
    assert all(seen)


def test_windows_with_missing_values_are_left_out_where_the_table_was_read_so() -> None:
    split = split_by_name("70/10/20", TIMES)
    table = replace(with_missing(wide_table(200), [("flat", 150)]), whole_windows=True)
    whole, some = (part_origins(each, SPEC, split, "val") for each in (wide_table(200), table))
    assert some[0].tolist() == whole[0].tolist()
    assert some[1].tolist() == [row for row in whole[1] if not row - 11 <= 150 <= row + 4]
    assert len(some[1]) < len(whole[1])


def test_the_stride_of_the_version_does_not_thin_what_is_scored() -> None:
    split = split_by_name("70/10/20", TIMES)
    strided = WindowSpec(lookback=12, horizon=4, stride=7)
    for which in PARTS:
        for one, other in zip(
            part_origins(wide_table(200), strided, split, which),
            part_origins(wide_table(200), SPEC, split, which),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["", "70/30", "70/20/20", "0/50/50", "a/b/c", "70/-10/40", "ett", "70.0/10/20", "100"])
def test_what_is_no_split_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not a split"):
        split_by_name(name, TIMES)


def test_a_table_too_short_for_its_split_is_refused() -> None:
    with pytest.raises(DataError, match="no training rows in a table of 1"):
        split_by_name("70/10/20", TIMES[:1])


def test_until_a_time() -> None:
    last = str(TIMES[-1])
    assert until("end").train_until == last
    assert until("end").val_until is until("end").test_until is None
    assert until("2021-03-05T07:00").train_until == str(np.datetime64("2021-03-05T07:00", "ns"))
    assert until("2031-01-01").train_until == last
    both = until("2021-03-05", "2021-03-07")
    assert (both.train_until[:10], both.val_until[:10], both.test_until) == ("2021-03-05", "2021-03-07", last)
    assert until("2021-03-05", "2031-01-01").test_until is None


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (("2020-01-01",), DataError),
        (("2021-03-05", "2021-03-05"), UsageError),
        (("end", "2021-03-05"), UsageError),
        (("2031-01-01", "2032-01-01"), UsageError),
    ],
)
def test_times_that_leave_nothing_are_refused(asked: tuple[str, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        until(*asked)


def test_the_validation_part_may_reach_to_the_end() -> None:
    split = until(str(TIMES[99]), "end")
    assert (split.train_until, split.val_until, split.test_until) == (str(TIMES[99]), str(TIMES[-1]), None)
    with pytest.raises(UsageError, match="leaves no validation part"):
        until("end", "end")


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown part 'dev'"):
        split_by_name("70/10/20", TIMES).bounds("dev")


def test_a_split_means_the_same_for_a_table_that_has_grown() -> None:
    split = split_by_name("70/10/20", TIMES)
    for which in PARTS:
        for one, other in zip(
            part_origins(wide_table(200), SPEC, split, which),
            part_origins(wide_table(360), SPEC, split, which),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
    short = wide_table(200)
    assert len(part_origins(short, SPEC, split, "train")[0]) == len(
        origin_rows(part(short.series[0], 0, 140).values, SPEC)
    )
