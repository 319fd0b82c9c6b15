"""A budget of memory: what is left out for it, in which order, and that the version says so."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from covariate_fixtures import built_with, covariate_table, without
from hypothesis import given
from hypothesis import strategies as st
from memory_fixtures import WINDOW, Store, build, open_version, wide_table
from vintage_fixtures import vintage_table

from cli.main import run
from memory_index.encoder import EncoderConfig
from memory_index.errors import ResourceError, UsageError
from memory_index.splits import split_by_name
from memory_index.types import KeySpace
from memory_index.versions import budget as budgets
from memory_index.versions.budget import BASE_BYTES, Asked, Beside, Budget, parse_budget, peak_bytes, within_budget
from memory_index.versions.factories import MAX_EXACT_ROWS
from memory_index.versions.manifest import manifest_from_json

GB = 10**9
WEATHER = Beside(num_columns=2, num_channels=2, num_steps=10**5, width=100, condition_width=24)


def asked(*, num_series: int = 3000, num_windows: int = 2000, **changes: object) -> Asked:
    origins = [np.arange(111, 111 + num_windows)] * num_series
    given = {
        "origins": origins,
        "num_steps": num_series * (num_windows + 139),
        "first_origin": 111,
        "stride": 1,
        "season": 7,
        "encoder": EncoderConfig(views=(48, 96)),
        "scopes": ("own", "pooled"),
        "factory": "auto",
        "keep_views": False,
        "keep_scopes": False,
    }
    return Asked(**given | changes)


def chosen(num_bytes: int, **changes: object) -> budgets.Choice:
    return within_budget(asked(**changes), num_bytes)[0]


def test_with_room_for_all_nothing_is_left_out():
    choice, record = within_budget(asked(num_series=20), 8 * GB)
    assert (choice.stride, choice.views, choice.scopes) == (1, (48, 96), ("own", "pooled"))
    assert {name for name, _ in choice.factories.values()} == {"Flat"}
    assert record.estimated_bytes == choice.peak_bytes
    assert record.choices[:3] == ("stride 1: all 40,000 windows", "views 48, 96: all", "scopes own, pooled: all")


def test_first_the_stride_grows_then_views_go_then_the_scope_of_unseen_series():
    budget, seen = 12 * GB, []
    while True:
        try:
            choice = chosen(budget)
        except ResourceError:
            break
        assert choice.peak_bytes <= budget
        seen.append((len(choice.views), len(choice.scopes), choice.stride))
        budget = int(budget * 0.9)
    assert seen[0] == (2, 2, 1)
    assert seen[-1][:2] == (1, 1)
    left = [(views, scopes) for views, scopes, _ in seen]
    assert left == sorted(left, reverse=True)
    within = [stride for views, scopes, stride in seen if (views, scopes) == (2, 2)]
    assert within == sorted(within)
    assert len(set(within)) > 2


@given(season=st.sampled_from([None, 1, 4, 5, 7, 12, 24, 52]), stride=st.integers(1, 5))
def test_a_longer_stride_meets_every_phase_of_the_season_that_the_asked_one_met(season, stride):
    origins = [np.arange(111, 2111, stride)] * 3
    for longer in budgets._strides(asked(origins=origins, season=season, stride=stride)):
        rows = np.arange(111, 111 + 60 * 60 * longer, longer)
        every = np.arange(111, 111 + 60 * 60 * stride, stride)
        assert longer % stride == 0
        assert {*(rows % (season or 1))} == {*(every % (season or 1))}
        assert len(origins[0]) // (longer // stride) >= budgets.MIN_WINDOWS or longer == stride


@given(
    num_windows=st.integers(1, 10**8),
    num_steps=st.integers(1, 10**9),
    more=st.integers(0, 10**6),
    series=st.integers(1, 10**5),
)
def test_more_of_anything_never_takes_less(num_windows, num_steps, more, series):
    factories = {KeySpace("own", 48): "Flat", KeySpace("pooled", 48): "IVF64,SQ8"}
    sizes = {"num_series": series, "num_steps": num_steps, "num_windows": num_windows}
    takes = peak_bytes(**sizes, encoder=EncoderConfig(views=(48,)), factories=factories)
    assert takes > BASE_BYTES
    for name in sizes:
        larger = sizes | {name: sizes[name] + more}
        assert peak_bytes(**larger, encoder=EncoderConfig(views=(48,)), factories=factories) >= takes
        assert peak_bytes(**larger, encoder=EncoderConfig(views=(48,)), factories=factories, beside=WEATHER) > takes
    fewer = {KeySpace("own", 48): "Flat"}
    assert peak_bytes(**sizes, encoder=EncoderConfig(views=(48,)), factories=fewer) <= takes


@given(
    name=st.sampled_from(
        ["num_columns", "num_channels", "num_steps", "width", "num_vintages", "num_issued", "num_near"]
    ),
    more=st.integers(1, 10**6),
    num_windows=st.integers(1, 10**7),
)
def test_more_covariates_or_vintages_never_take_less(name, more, num_windows):
    issued = replace(WEATHER, num_vintages=10**6, num_issued=2, num_near=192)
    takes = [
        peak_bytes(
            num_series=3,
            num_steps=10**5,
            num_windows=num_windows,
            encoder=EncoderConfig(views=(48,)),
            factories={KeySpace("own", 48): "Flat"},
            beside=each,
        )
        for each in (issued, replace(issued, **{name: getattr(issued, name) + more}))
    ]
    assert takes[0] <= takes[1]


def test_a_build_counts_its_covariates_and_vintages(tmp_path):
    made = []
    for number, table in enumerate((without(vintage_table()), vintage_table(), covariate_table())):
        budget = Budget(num_bytes=2 * GB)
        version = built_with(tmp_path, table, name=f"v{number}", budget=budget)
        made.append(version.manifest.budget.estimated_bytes)
    assert made[0] < made[2] < made[1]


def test_what_was_asked_for_by_name_stays():
    kept = {"keep_views": True, "keep_scopes": True}
    least = min(choice.peak_bytes for choice in budgets._choices(asked(**kept)))
    assert chosen(least, **kept).spaces == chosen(100 * GB).spaces
    assert len(chosen(least - 1).views) == 1
    assert chosen(least - 1, keep_views=True).scopes == ("own",)
    with pytest.raises(ResourceError, match=r"too small: with stride \d+, the views 48, 96 and the scopes own, pooled"):
        chosen(least - 1, **kept)
    assert chosen(3 * GB, factory="Flat").factories[KeySpace("pooled", 48)] == ("Flat", "asked for")
    with pytest.raises(ResourceError, match=r"the scopes own the build takes about \d+ MB"):
        chosen(GB // 2)


def test_many_keys_of_all_series_get_lists_and_few_are_scanned():
    assert 20 * 2000 < MAX_EXACT_ROWS < 3000 * 2000
    for num_series, factory in ((20, "Flat"), (3000, "IVF4096,SQ8")):
        factories = chosen(100 * GB, num_series=num_series).factories
        assert factories[KeySpace("pooled", 96)][0] == factory
        assert factories[KeySpace("own", 96)][0] == "Flat"


@pytest.mark.parametrize(
    ("text", "expected"), [("8GB", 8 * GB), ("500 mb", 500_000_000), ("1.5GiB", 3 << 29), ("4096B", 4096)]
)
def test_sizes_are_read(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", ["8", "GB", "-1GB", "0GB", "nanGB", "infGB", "8 giga", "", "1e400GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match=r"is not a size|leaves nothing"):
        parse_budget(text)


@pytest.fixture(scope="module")
def table():
    return wide_table()


def built(table, folder, **options):
    window = replace(WINDOW, stride=1)
    return build(table, Store(folder), "m", window=window, split=split_by_name("70/10/20", table.times), **options)


def test_the_version_says_what_was_chosen_and_is_searched_as_any_other(table, tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "MIN_WINDOWS", 5)
    settings = {"encoder": EncoderConfig(views=(8, 12), shape_width=6)}
    plain = built(table, tmp_path / "plain", **settings)
    roomy = built(table, tmp_path / "roomy", **settings, budget=Budget(num_bytes=8 * GB))
    assert roomy.manifest.budget.choices[0].startswith("stride 1: all")
    assert replace(roomy.manifest, budget=None).fingerprint == plain.manifest.fingerprint
    assert plain.manifest.budget is None
    assert "budget" not in json.loads(plain.manifest.to_json())

    takes = roomy.manifest.budget.estimated_bytes
    tight = built(table, tmp_path / "tight", **settings, budget=Budget(num_bytes=takes - 1))
    manifest = manifest_from_json(tight.manifest.to_json(), where="it")
    assert manifest == tight.manifest
    assert manifest.fingerprint == tight.manifest.fingerprint
    assert manifest.window.stride > 1
    assert manifest.num_rows < plain.manifest.num_rows
    assert f"stride {manifest.window.stride}: {manifest.num_rows:,} of" in manifest.budget.choices[0]
    again = built(table, tmp_path / "again", **settings, budget=Budget(num_bytes=takes - 1))
    assert again.manifest.fingerprint == manifest.fingerprint
    assert len(open_version(tight).windows) == manifest.num_rows


@pytest.fixture
def call(table, tmp_path, capfd):
    """Build with these arguments: (exit code, stdout)."""
    file = tmp_path / "t.csv"
    rows = zip(table.times, np.stack([series.values for series in table.series], axis=1), strict=True)
    lines = [f"ds,{','.join(table.series_ids)}", *(f"{at},{','.join(map(str, row))}" for at, row in rows)]
    file.write_text("\n".join(lines) + "\n")

    def build_with(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        shape = ["--name", "m", "--lookback", "12", "--horizon", "4", "--indexes-dir", str(tmp_path)]
        code = run(["index", "build", str(file), *shape, *arguments])
        return code, capfd.readouterr().out

    return build_with


def test_the_command_tells_what_was_chosen(call):
    code, shown = call("--budget", "8GB")
    assert code == 0
    assert "8 GB of memory at most" in shown
    assert "stride 1: all" in shown
    document = json.loads(call("--budget", "8GB", "--json")[1])
    assert document["budget"]["budget_bytes"] == 8 * GB
    assert len(document["budget"]["choices"]) == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["1MB"], 7), (["much"], 2), (["8GB", "--encoder", "pattern"], 2)],
)
def test_the_command_refuses_what_does_not_fit(call, arguments, expected):
    code, shown = call("--budget", *arguments, "--json")
    assert code == expected
    assert json.loads(shown)["error"]["hint"]
