"""An index remembers how the columns of its table were named: later files are read likewise, without options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forecaster_fixtures import SETTINGS, WITHOUT_NETWORK

from cli.main import run
from forecaster import Forecaster
from memory_index import ReadOptions, Store, WindowSpec, build, read_frame, read_table, split_by_name
from memory_index.errors import DataError
from memory_index.tables.recorded_roles import as_remembered, remembered_of

LOOKBACK, HORIZON, NUM_DAYS = 28, 7, 300
NAMES = ["--time-column", "day", "--id-column", "store", "--value-column", "sales", "--ignore", "remark"]


def stores() -> pd.DataFrame:
    """Two stores, long, under names of their own."""
    random, days = np.random.default_rng(3), pd.date_range("2023-01-02", periods=NUM_DAYS + HORIZON)
    parts = []
    for store in ("north", "south"):
        promo = random.random(len(days)) < 0.1
        sales = 100 + 20 * (days.day_of_week > 4) + 30 * promo + random.normal(size=len(days))
        parts.append(pd.DataFrame({"day": days, "store": store, "sales": sales, "promo": promo, "remark": "fine"}))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tables, and an index of the history, built with every name typed."""
    path, table = tmp_path_factory.mktemp("stores"), stores()
    ahead = table["day"] >= table["day"].drop_duplicates().iloc[NUM_DAYS]
    table[~ahead].to_csv(path / "stores.csv", index=False)
    table[ahead].drop(columns=["sales", "remark"]).to_csv(path / "ahead.csv", index=False)
    asked = ["--lookback", str(LOOKBACK), "--horizon", str(HORIZON), "--known", "promo", "--missing", "-9999"]
    built = ["index", "build", str(path / "stores.csv"), "--name", "s", *asked, *NAMES]
    assert run([*built, "--indexes-dir", str(path / "indexes")]) == 0
    return path


def test_no_later_command_needs_the_names(folder, capsys):
    where = ["--indexes-dir", str(folder / "indexes")]
    history, of_run = str(folder / "stores.csv"), ["--run", str(folder / "run")]
    ahead = ["--future", str(folder / "ahead.csv"), "--out", str(folder / "forecast.csv")]
    for command in (
        ["train", history, "--index", "s@1", "--out", str(folder / "run"), *where],
        ["evaluate", history, *of_run, *where],
        ["index", "neighbours", "s", history, "--series", "north", "--at", "2023-09-01", *where],
        ["forecast", history, *of_run, "--update-index", *ahead, *where],
    ):
        assert run(command) == 0, command
    assert set(pd.read_csv(folder / "forecast.csv")["unique_id"]) == {"north", "south"}
    assert "--id-column" not in capsys.readouterr().err  # nor are they told to


def test_what_is_typed_wins_and_what_a_file_lacks_is_found_as_ever():
    options = ReadOptions(time_column="day", id_column="store, item", value_column="sales", ignore=("remark", "other"))
    remembered = remembered_of(options, ["day", "store", "item", "sales", "remark"])
    assert dict(remembered)["ignore"] == ("remark",)  # a column; a series of that name is the version's to know
    like = ReadOptions(remembered=remembered)
    found = as_remembered(like, ["day", "store", "item", "sales", "remark"])
    assert (found.time_column, found.id_column, found.value_column) == ("day", "store, item", "sales")
    wide = as_remembered(like, ["ds", "north", "south", "sales"])
    assert wide == ReadOptions()
    typed = as_remembered(ReadOptions(remembered=remembered, time_column="sold", ignore=("day",)), ["sold", "day"])
    assert (typed.time_column, typed.ignore) == ("sold", ("day",))


def test_from_python(tmp_path):
    table = stores()
    history = table.groupby("store").head(NUM_DAYS)
    ahead = table.groupby("store").tail(HORIZON).drop(columns=["sales", "remark"])
    options = ReadOptions(time_column="day", id_column="store", value_column="sales", ignore=("remark",))
    settings = {**SETTINGS, **WITHOUT_NETWORK, "lookback": LOOKBACK, "horizon": HORIZON}
    model = Forecaster(options=options, known="promo", folder=tmp_path / "model", device="cpu", **settings)
    model.fit(history).save(tmp_path / "saved")
    found = Forecaster.load(tmp_path / "saved", device="cpu").predict(history, future=ahead)
    assert set(found["unique_id"]) == {"north", "south"}


def test_a_version_of_plain_names_is_what_it_was(tmp_path):
    times = pd.date_range("2024-01-01", periods=200, freq="h")
    frame = pd.DataFrame({"ds": times, "load": np.arange(200.0) % 24})
    table, window = read_frame(frame), WindowSpec(lookback=24, horizon=4)
    version = build(table, Store(tmp_path), "x", window=window, split=split_by_name("80/20/0", table.times))
    assert version.manifest.reading == ()
    assert "reading" not in version.manifest.to_document()


@pytest.mark.parametrize(
    ("written", "typed"),
    [
        (lambda days: days.strftime("%d/%m/%Y"), {"time_format": "%d/%m/%Y", "decimal": ","}),
        (lambda days: (days - pd.Timestamp("1970-01-01")) // pd.Timedelta("1s"), {"time_unit": "s"}),
        (lambda days: np.arange(len(days)), {"time_start": "2024-01-01", "step": "D"}),
    ],
)
def test_the_form_of_times_and_numbers_is_remembered_where_a_file_has_it(written, typed, tmp_path):
    days, y = pd.date_range("2024-01-01", periods=40), np.round(np.linspace(1, 9, 40), 3)
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    decimal = typed.get("decimal", ".")
    frame = pd.DataFrame({"when": written(days), "y": y})
    frame.to_csv(first, index=False, sep=";", decimal=decimal)
    options = ReadOptions(time_column="when", **typed)
    table = read_table(first, options)
    like = ReadOptions(remembered=table.reading, step="D")
    assert read_table(first, like).content_hash == table.content_hash
    pd.DataFrame({"ds": days, "y": y}).to_csv(second, index=False)
    other = read_table(second, like)
    assert np.array_equal(other.series[0].times, table.series[0].times), "ISO times need no form"
    assert np.array_equal(other.series[0].values, y), "1.125 is not 1125, though the first table had commas"
    if "time_format" in typed:
        with pytest.raises(DataError):  # what is typed wins
            read_table(first, replace(like, time_format="%Y"))
