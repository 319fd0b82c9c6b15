"""The league: other packages see nothing after an origin, and are scored on the windows that they were asked for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.league.others import scored
from benchmarks.league.scoring import FEW, LEVELS, Asked, Tally, few_windows
from benchmarks.league.tables import Entry
from benchmarks.peers import worker
from benchmarks.peers.exchange import long_frame, windows_frame
from memory_index import read_frame, split_by_name

H = 6
ENTRY = Entry("some", "reports", lambda folder: pd.DataFrame(), 12, H, 4)
TIMES = pd.date_range("2024-01-01", periods=200, freq="h")
TABLE = read_frame(
    pd.concat(
        [
            pd.DataFrame({"unique_id": name, "ds": TIMES, "y": 1000.0 * n + np.arange(200) % 7})
            for n, name in enumerate("ab")
        ]
    )
)
SPLIT = split_by_name("70/10/20", TABLE.times)
ROWS = [np.arange(160, 190), np.arange(170, 180)]


@pytest.mark.parametrize("num_series", [1, 7, 414])
def test_few_windows_are_about_as_many_of_every_table(num_series):
    rows = [np.arange(100, 700)] * num_series
    chosen = few_windows(rows)
    assert FEW / 2 < sum(map(len, chosen)) <= FEW
    assert all(set(each) <= set(whole) for each, whole in zip(chosen, rows, strict=True))
    assert [len(each) for each in few_windows([np.arange(3), np.arange(0)])] == [3, 0]


def test_a_forecaster_is_scored_on_what_it_was_asked_for_and_on_all_of_it():
    asked = windows_frame(TABLE, ROWS)
    perfect = {name: series.values for name, series in zip("ab", TABLE.series, strict=True)}
    said = []
    for name, origin in asked.itertuples(index=False):
        at = int(np.searchsorted(TABLE.times, origin.to_datetime64()))
        future = perfect[name][at + 1 : at + 1 + H]
        said.append(worker.frame_of(name, origin, future, np.repeat(future[:, None], len(LEVELS), axis=1)))
    found = scored(pd.concat(said[::-1]), asked, TABLE, ENTRY, SPLIT)
    assert (found["mse"], found["mase"], found["sql"]) == (0, 0, 0)
    late = [each.assign(yhat=each["yhat"].shift(1, fill_value=0.0)) for each in said]
    assert scored(pd.concat(late), asked, TABLE, ENTRY, SPLIT)["mase"] > 0
    with pytest.raises(SystemExit, match="were asked for"):
        scored(pd.concat(said[1:]), asked, TABLE, ENTRY, SPLIT)


def test_a_local_model_sees_values_up_to_the_origin(monkeypatch):
    table, asked = long_frame(TABLE), windows_frame(TABLE, ROWS)
    monkeypatch.setattr(worker, "flaircast_of", lambda job: lambda known: (known[-H:], np.tile(known[-H:, None], 9)))
    before = [*worker.locally({"peer": "flaircast"}, table, asked)]
    first = asked["origin"].min()
    poisoned = table.assign(y=table["y"].where(table["ds"] <= first, np.nan))
    after = [*worker.locally({"peer": "flaircast"}, poisoned, asked[asked["origin"] == first])]
    pd.testing.assert_frame_equal(before[0], after[0])


def test_a_fitted_model_is_shown_values_up_to_the_origin_and_known_columns_of_the_horizon():
    table, asked = long_frame(TABLE), windows_frame(TABLE, ROWS)
    table["known"] = np.arange(len(table))
    shown = {}

    class Model:
        def predict(self, h, new_df, **more):
            shown.update(past=new_df, ahead=more["X_df"])
            return more["X_df"].assign(yhat=lambda rows: rows["known"])

    job = {"known": ["known"], "horizon": H, "lookback": 12}
    for number, (name, origin, yhat) in enumerate(worker.predicted(job, Model(), table, asked)):
        past, ahead = (part[part["unique_id"] == f"{number:06d}"] for part in (shown["past"], shown["ahead"]))
        assert past["ds"].max() == origin < ahead["ds"].min()
        mine = table[(table["unique_id"] == name) & (table["ds"] > origin)]
        np.testing.assert_array_equal(yhat, mine["known"][:H])


def test_an_interval_of_a_ratio_holds_it():
    drawn, tally = np.random.default_rng(0), Tally()
    n = 400
    tally.asked.append(
        Asked(
            future=drawn.normal(size=(n, H)),
            series=np.zeros(n, dtype=np.int64),
            origin=TIMES[0].to_datetime64() + np.arange(n) * np.timedelta64(1, "h"),
            unit=np.ones(n),
            scale=np.ones(n),
        )
    )
    (asked,) = tally.asked
    tally.add("trained", asked, np.zeros((n, H)))
    tally.add("same", asked, np.zeros((n, H)))
    tally.add("worse", asked, drawn.normal(size=(n, H)))
    found = tally.intervals(H)
    assert found["same"]["mse"] == [1.0, 1.0]
    low, high = found["worse"]["mse"]
    scores = tally.scores()
    assert low < scores["trained"]["mse"] / scores["worse"]["mse"] < high < 1
