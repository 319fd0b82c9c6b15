"""Whatever a fault or a note advises: following it never loses a value that the user did not agree to lose.

A table of known values is written with one fault of some kind. Then every alternative of every advice is followed,
one after the other, until the table is read or the advice is to change the file. What is read must hold every value
that was written, under its series and at its time, but for what the followed words gave up by name: a column that is
left out, a cell that means no value, one of two rows with one time.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index.errors import DataError, UsageError
from memory_index.tables.checking import check_table
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_table

FLAG = re.compile(r'--([a-z][a-z-]+) ("[^"]*"|drop, ffill or interpolate|first or last|first, last or mean|[^\s;,)]+)')
CHOICES = re.compile(r", | or ")
MOST_STEPS = 5  # pieces of advice that are followed one after the other


@dataclass(kw_only=True)
class Written:
    """A file of rows, and what of it must be found again. truth: {series: {time: value}}."""

    rows: pd.DataFrame
    truth: dict[str, dict[pd.Timestamp, float]]
    separator: str = ","


def table_of(draw, layout):
    step = draw(st.sampled_from(["h", "D", "MS"]))
    names = {"wide": ["load", "wind"], "long": ["load", "wind"], "store": ["1", "2"]}.get(layout, ["1/7", "1/8", "2/7"])
    times, value, rows = pd.date_range("2024-01-01", periods=draw(st.integers(24, 40)), freq=step), 100.0, []
    for name in names:
        for time in times:
            value += 0.7
            rows.append((name, time, round(value, 1)))
    truth = {name: {t: v for n, t, v in rows if n == name} for name in names}
    frame = pd.DataFrame(rows, columns=["unique_id", "ds", "y"])
    if layout == "wide":
        frame = frame.pivot(index="ds", columns="unique_id", values="y").reset_index().rename_axis(columns=None)
    elif layout != "long":
        keys = frame.unique_id.str.split("/", expand=True)
        frame = frame.drop(columns="unique_id").rename(columns={"ds": "date", "y": "sales"})
        frame.insert(0, "store", keys[0].astype(int))
        if layout == "store and item":
            frame.insert(1, "item", "i" + keys[1])
            truth = {name.replace("/", "/i"): cells for name, cells in truth.items()}
    if draw(st.booleans()) and layout != "wide":
        frame = frame.sort_values(frame.columns[-2], kind="stable")
    if draw(st.booleans()):
        frame = frame[::-1]
    return Written(rows=frame.reset_index(drop=True).astype(object), truth=truth)


def time_column(written):
    return next(name for name in written.rows.columns if name in ("ds", "date"))


def drop_value(written, row, column):
    """Forget what a cell held: the fault has overwritten it."""
    lost = written.rows.loc[row, column]
    for cells in written.truth.values():
        for time in [time for time, value in cells.items() if value == lost]:
            del cells[time]


def overwrite(cell):
    def fault(written, draw):
        column, row = written.rows.columns[-1], draw(st.integers(2, len(written.rows) - 3))
        drop_value(written, row, column)
        written.rows.loc[row, column] = cell

    return fault


def decimal_commas(written, draw):
    column = written.rows.columns[-1]
    written.rows[column] = [f"{value}".removesuffix(".0").replace(".", ",") for value in written.rows[column]]
    written.separator = ";"


def elsewhere(cell):
    """One series has a value far outside its own, which another has by right."""

    def fault(written, draw):
        column, (first, second, *_) = written.rows.columns[-1], sorted(written.truth)
        if first in written.rows.columns:
            column = None
        middle = sorted(written.truth[second].values())[10]
        for series, shift in ((second, cell - middle), (first, 0.0)):
            at = middle if series == second else draw(st.sampled_from(list(written.truth[first].values())[3:20]))
            for time, value in list(written.truth[series].items()):
                name, new = series if column is None else column, cell if value == at else round(value + shift, 1)
                written.rows.loc[written.rows[name] == value, name] = new
                written.truth[series][time] = new
                if series == first and value == at:
                    del written.truth[series][time]

    return fault


def rows_missing(written, draw):
    first = draw(st.integers(3, len(written.rows) - 8))
    for row in range(first, first + 3):
        for column in written.rows.columns:
            drop_value(written, row, column)
    written.rows = written.rows.drop(index=range(first, first + 3))


def row_twice(written, draw):
    row = written.rows.loc[[draw(st.integers(0, len(written.rows) - 1))]]
    written.rows = pd.concat([written.rows, row])


def two_values(written, draw):
    row, column = draw(st.integers(0, len(written.rows) - 1)), written.rows.columns[-1]
    twin = written.rows.loc[[row]].copy()
    twin[column] += 1
    drop_value(written, row, column)
    written.rows = pd.concat([written.rows, twin])


def remark(written, draw):
    written.rows["remark"] = draw(st.sampled_from([["ok"], ["ok", "bad"], ["10 kg", "11 kg"]]))[0]


def another_number(written, draw):
    written.rows["price"] = [0.001 * n for n in range(len(written.rows))]


def row_numbers(written, draw):
    written.rows.insert(0, "", range(len(written.rows)))


def off_the_grid(written, draw):
    stray = written.rows.iloc[[0]].copy()
    stray[time_column(written)] += pd.Timedelta("7min")
    written.rows = pd.concat([written.rows, stray])


def as_numbers(of):
    def fault(written, draw):
        name = time_column(written)
        written.rows[name] = of(pd.DatetimeIndex(written.rows[name]))

    return fault


def day_first(written, draw):
    name = time_column(written)
    written.rows[name] = pd.DatetimeIndex(written.rows[name]).strftime("%d/%m/%Y %H:%M")


def half_months(written, draw):
    name = time_column(written)
    times = sorted(set(written.rows[name]))
    moved = dict(zip(times, pd.date_range("2024-01-01", periods=len(times), freq="SMS"), strict=True))
    written.rows[name] = written.rows[name].map(moved)
    written.truth = {s: {moved[t]: v for t, v in cells.items()} for s, cells in written.truth.items()}


FAULTS = {
    "none": lambda written, draw: None,
    "decimal commas": decimal_commas,
    "thousands": overwrite("1,001.5"),
    "a word": overwrite("broken"),
    "a unit": overwrite("7.5 kWh"),
    "empty cell": overwrite(""),
    "infinite": overwrite("inf"),
    "a code": overwrite(-9999),
    "a code that another series has": elsewhere(9999.0),
    "a fault of the meter": overwrite(123456.5),
    "a fault that another series has": elsewhere(12345.5),
    "the largest number": overwrite(1.7976931348623157e308),
    "rows missing": rows_missing,
    "a row twice": row_twice,
    "two values at one time": two_values,
    "a remark": remark,
    "another number": another_number,
    "row numbers": row_numbers,
    "off the grid": off_the_grid,
    "seconds": as_numbers(lambda times: times.as_unit("s").asi8),
    "milliseconds": as_numbers(lambda times: times.as_unit("ms").asi8),
    "excel": as_numbers(lambda times: (times - pd.Timestamp("1899-12-30")) / pd.Timedelta("1D")),
    "dates in digits": as_numbers(lambda times: times.strftime("%Y%m%d%H").astype(int)),
    "day first": day_first,
    "half months": half_months,
}


def alternatives(advice):
    """What an advice can be followed with: a list of {flag: value}. Flags side by side belong together."""
    found, end = [], None
    for match in FLAG.finditer(advice):
        flag, text = match[1].replace("-", "_"), match[2].strip('"')
        values = CHOICES.split(text) if flag in ("on_gap", "on_nan", "on_duplicate") else [text]
        if text == "NAME":
            values = re.search(r"one of ([^);]*)", advice)[1].split(", ")
        if end is not None and advice[end : match.start()].strip() == "" and match[1] != "ignore":
            found = [*found[:-1], *({**found[-1], flag: value} for value in values)]
        else:
            found += [{flag: value} for value in values]
        end = match.end()
    return found


def followed(options, chosen):
    for flag, value in chosen.items():
        if flag == "transform":
            return None  # of `build`: it changes no value
        if flag in ("ignore", "missing", "known", "observed", "static"):
            if value in getattr(options, flag):
                return None  # it has been followed
            value = (*getattr(options, flag), value)
        if getattr(options, flag, None) == value:
            return None
        try:
            options = replace(options, **{flag: value})
        except UsageError as error:  # another advice for the same column has been followed
            if "is named twice" not in str(error):
                raise
            return None
    return options


def assert_nothing_lost(path, written, options, how):
    table = read_table(path, options)
    given_up = {*options.missing, *options.ignore}
    if options.value_column not in (None, "y", "sales"):
        return  # told in words: the other column's numbers instead
    for series_id, cells in written.truth.items():
        if series_id in given_up:
            continue
        assert series_id in table.series_ids, f"{series_id} is gone after {how}"
        one = table[series_id]
        clock = table.step.local(one.times).tz_localize(None)  # as written, in whatever zone it was said to be
        held = dict(zip(clock, one.values, strict=True))
        for time, value in cells.items():
            assert held.get(time) == value, f"{series_id} at {time} is {held.get(time)}, not {value}, after {how}"


@settings(max_examples=60)
@given(
    data=st.data(),
    layout=st.sampled_from(["wide", "long", "store", "store and item"]),
    kind=st.sampled_from(sorted(FAULTS)),
)
def test_following_any_advice_loses_nothing_unasked(tmp_path_factory, data, layout, kind):
    written = table_of(data.draw, layout)
    FAULTS[kind](written, data.draw)
    path = tmp_path_factory.mktemp("advice") / "table.csv"
    written.rows.to_csv(path, index=False, sep=written.separator)
    open_ways, seen = [(ReadOptions(), ())], set()
    while open_ways:
        options, how = open_ways.pop()
        if options in seen or len(how) > MOST_STEPS:
            continue
        seen.add(options)
        report = check_table(path, options)
        with suppress(DataError):  # then there is more advice to follow
            assert_nothing_lost(path, written, options, how)
        for problem in report.problems:
            assert problem.fix or problem.severity == "note"
            for chosen in alternatives(problem.fix):
                after = followed(options, chosen)
                if after is not None:
                    open_ways.append((after, (*how, chosen)))
    assert seen


def test_alternatives_are_found_in_advice():
    assert alternatives("--on-gap drop, ffill or interpolate") == [
        {"on_gap": "drop"},
        {"on_gap": "ffill"},
        {"on_gap": "interpolate"},
    ]
    advice = 'read it with --id-column "store,item" --value-column NAME (one of a, b), or join these columns into one'
    assert alternatives(advice) == [
        {"id_column": "store,item", "value_column": "a"},
        {"id_column": "store,item", "value_column": "b"},
    ]
    assert alternatives("if they are: --time-unit s; else name the right one with --time-column") == [
        {"time_unit": "s"}
    ]
    assert np.unique([len(alternatives(text)) for text in ("correct the cell", "write the number alone")]).tolist() == [
        0
    ]


def test_the_hour_that_clocks_show_twice_and_a_row_that_is_there_twice_have_advice_of_their_own(tmp_path):
    """Following what is said of the row leaves the hour as it was, whose two values differ or not."""
    times = pd.date_range("2024-10-26", periods=72, freq="h", tz="Europe/Berlin")
    rows = pd.DataFrame({"date": times.tz_localize(None), "a": np.arange(72.0)})
    rows = pd.concat([rows[:40], rows[39:]])
    path = tmp_path / "table.csv"
    rows.to_csv(path, index=False)
    row, hour = (problem for problem in check_table(path).problems if problem.severity == "fault")
    assert (row.kind, alternatives(row.fix)) == ("duplicate", [{"on_duplicate": "same"}])
    assert hour.kind == "conflict"
    assert hour.fix.startswith("if these are local times, clocks were changed then in Europe/Berlin: --time-zone Euro")
    [still] = [problem for problem in check_table(path, ReadOptions(on_duplicate="same")).problems if problem.row == 29]
    assert still.kind == "conflict"
    table = read_table(path, ReadOptions(on_duplicate="same", time_zone="Europe/Berlin"))
    assert table.series[0].values.tolist() == list(range(72))


def test_faults_behind_one_that_stops_reading_are_found_in_one_go(tmp_path):
    """What the shape of the times or of the table hides is found by reading on with the likeliest resolution."""
    months = pd.date_range("2020-01-15", periods=30, freq="MS") + pd.Timedelta("14D")
    days = pd.date_range("2024-01-01", periods=60)
    shapes = {
        "step": (months.strftime("%Y-%m-%d"), "step"),
        "day or month first": (pd.date_range("2024-01-01", periods=12).strftime("%m/%d/%Y"), "time"),
        "seconds": (days.as_unit("s").asi8.astype(str), "time"),
    }
    for name, (times, kind) in shapes.items():
        path = tmp_path / "table.csv"
        text = "".join(f"{time},{n}.5,{n},ok\n" for n, time in enumerate(times))
        path.write_text("date,a,b,remark\n" + text.replace(",3.5", ",broken") + f"{times[5]},5.5,5,ok\n")
        found = check_table(path).problems
        kinds = [problem.kind for problem in found]
        assert kinds[0] == kind, name
        assert {"not-a-number", "column", "duplicate", "guess"} <= set(kinds), (name, kinds)
        assert kinds.count(kind) == 1
        assert not {"gap", "changed"} & set(kinds)
    keys = pd.DataFrame({"store": [1, 2] * 60, "date": days.repeat(2), "sales": np.arange(120.0)})
    keys["sales"] = keys["sales"].astype(str).where(keys.index != 50, "closed")
    keys.to_csv(tmp_path / "keys.csv", index=False)
    first, second, guess = check_table(tmp_path / "keys.csv").problems
    assert [first.kind, second.kind, guess.kind] == ["series", "not-a-number", "guess"]
    assert '--id-column "store"' in guess.message
