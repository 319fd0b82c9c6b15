"""The learned key: a version that carries it is a version like any other, and it learns what it is trained for."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from memory_fixtures import (
    ENCODER,
    NUM_TRAINING,
    WINDOW,
    Policy,
    Store,
    append,
    assert_same,
    between,
    build,
    compact,
    open_version,
    part,
    queries_at,
    take,
    wide_table,
)

from cli import main
from forecaster.learned_keys.compare_encoders import compare_with_built_in
from forecaster.learned_keys.fit_pattern import (
    fit_pattern_encoder,
    neighbour_forecast,
    pattern_batch,
    squared_distances,
)
from forecaster.learned_keys.pattern_encoder import PatternConfig, PatternEncoder, load_encoder
from forecaster.retrieval.folds import FoldPlan
from forecaster.retrieval.neighbour_cache import training_neighbours
from forecaster.retrieval.neighbours import condense
from memory_index.encoder import EncoderConfig
from memory_index.errors import DataError, IncompatibleError, VerificationError
from memory_index.fit_encoder import fit_encoder
from memory_index.references import open_memory
from memory_index.splits import Split, part_origins
from memory_index.types import KeySpace
from memory_index.versions.opening import verify_contents
from memory_index.versions.version import verify
from memory_index.windows import origin_rows

TABLE = wide_table()
TIMES = TABLE.series[0].times
SPLIT = Split(name="rows", train_until=str(TIMES[NUM_TRAINING - 1]), val_until=str(TIMES[309]), test_until=None)
PATTERN = PatternConfig(d_model=8, num_heads=2, num_layers=2, patch_length=4, batch_size=48, num_steps=4)
FIT = partial(fit_pattern_encoder, pattern=PATTERN)


def make(folder: Path, **options):
    options = {"window": WINDOW, "split": SPLIT, "encoder": ENCODER, "fit": FIT} | options
    return build(TABLE, Store(folder), "m", **options)


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return make(tmp_path_factory.mktemp("pattern"))


@pytest.fixture(scope="module")
def memory(version):
    return open_version(version, load_encoder=load_encoder, threads=1)


def training_origins():
    return part_origins(TABLE, WINDOW, SPLIT, "train")


# The key


def test_the_loaded_encoder_is_the_trained_one(version, memory):
    again = FIT(between(TABLE, 0, NUM_TRAINING), training_origins(), ENCODER, lookback=36, horizon=8, scopes=("joint",))
    assert again.fingerprint == memory.encoder.fingerprint == version.manifest.encoder["fingerprint"]
    other = fit_pattern_encoder(
        between(TABLE, 0, NUM_TRAINING),
        training_origins(),
        ENCODER,
        lookback=36,
        horizon=8,
        scopes=("joint",),
        pattern=replace(PATTERN, seed=1),
    )
    assert other.fingerprint != again.fingerprint
    assert version.manifest.encoder["kind"] == "pattern"
    assert version.manifest.joint == "built"


def test_training_leaves_the_random_state_and_the_threads_alone():
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    FIT(between(TABLE, 0, NUM_TRAINING), training_origins(), ENCODER, lookback=36, horizon=8, scopes=("own",))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("view", [12, 36])
def test_keys_do_not_depend_on_batching_or_threads(memory, view):
    context = queries_at(TABLE, range(40, 340, 2)).context
    scopes = ("own", "joint", "pooled")
    series = np.arange(3)
    whole = memory.encoder.encode(view, context, series, scopes)
    before = torch.get_num_threads()
    for chosen, threads in ((slice(0, 1), 1), (slice(70, 75), 2), (slice(33, 150), 3)):
        torch.set_num_threads(threads)
        some = memory.encoder.encode(view, context[chosen], series, scopes)
        for scope in scopes:
            np.testing.assert_array_equal(some.keys[scope], whole.keys[scope][chosen], err_msg=scope)
    torch.set_num_threads(before)
    alone = memory.encoder.encode(view, context[:, 1:2], series[1:2], ("own",))
    np.testing.assert_array_equal(alone.keys["own"][:, 0], whole.keys["own"][:, 1])


def test_keys_have_the_promised_widths(memory):
    encoded = memory.encoder.encode(12, queries_at(TABLE, [100]).context, np.arange(3), ("own", "joint", "pooled"))
    for scope, keys in encoded.keys.items():
        assert keys.shape[-1] == ENCODER.key_width(KeySpace(scope, 12), 3)
        assert keys.dtype == np.float32


@pytest.mark.parametrize(("view", "length"), [(96, 16), (100, 16), (7, 16), (2, 16)])
def test_patches_cover_every_step_and_end_at_the_newest(view, length):
    network = PatternEncoder(view, 4, replace(PATTERN, patch_length=length)).double()
    z = torch.randn(1, view, dtype=torch.float64, requires_grad=True)
    network(z).square().mul(torch.arange(4)).sum().backward()
    assert (z.grad != 0).all()


# The loss


def test_the_loss_compares_windows_that_share_no_step():
    base = fit_encoder(between(TABLE, 0, NUM_TRAINING), training_origins(), ENCODER, lookback=36, horizon=8, scopes=())
    rows = np.array([40, 83, 84, 200])
    batch = pattern_batch(TABLE, base, {0: rows, 2: rows[:2]}, view=12, lookback=36)
    everywhere = np.concatenate([rows, rows[:2]])
    apart = np.abs(everywhere[:, None] - everywhere) >= 44  # rows 40 and 83 share one step, rows 40 and 84 none
    np.testing.assert_array_equal(batch.pooled, apart)
    assert batch.own[0].tolist() == [False, False, True, True, False, False]
    assert batch.pooled[4].tolist() == [False, False, True, True, False, False]
    assert not batch.own[4:].any()
    values = TABLE.series[0].values
    window = values[40 - 11 : 41]
    spread = max(window.std(), ENCODER.spread_floor * base.scale.std[0])
    np.testing.assert_allclose(batch.future[0], (values[41:49] - window.mean()) / spread, rtol=1e-5)
    np.testing.assert_allclose(batch.weight[0], (spread / base.scale.std[0]) ** 2, rtol=1e-5)
    forecast = neighbour_forecast(torch.zeros(6, 6), batch.future, batch.own)
    torch.testing.assert_close(forecast[0], batch.future[[2, 3]].mean(dim=0))
    torch.testing.assert_close(forecast[1], batch.future[3])
    assert (forecast[4] == 0).all()
    late = replace(TABLE, series=(part(TABLE.series[0], 0, 300), part(TABLE.series[1], 50, 300)))
    ragged = pattern_batch(late, base, {0: np.array([60, 104]), 1: np.array([50, 60])}, view=12, lookback=36)
    assert ragged.pooled[0].tolist() == [False, True, False, True]  # origins at steps 60, 104, 100, 110
    parts = torch.randn(5, 3)
    torch.testing.assert_close(squared_distances(parts), torch.cdist(parts, parts) ** 2, rtol=1e-3, atol=1e-5)


def test_training_brings_windows_with_like_futures_together():
    """A sign hidden in one of many patches decides the future; the built-in shape distance hardly sees it."""
    random = np.random.default_rng(0)
    num_steps, lookback, horizon = 4000, 24, 8
    values = random.normal(size=num_steps)
    sign = np.where(random.random(num_steps // 32) < 0.5, -1, 1)
    for number, each in enumerate(sign):  # a pulse, and 8 to 16 steps later a plateau of its sign
        values[32 * number : 32 * number + 2] += 2.5 * each
        values[32 * number + 14 : 32 * number + 24] += 4 * each
    series = replace(TABLE.series[0], times=TABLE.step.range(TIMES[0], num_steps), values=values)
    table = replace(TABLE, series=(series,))
    config = EncoderConfig(views=(24,), shape_width=8, forecast_weight=0.0)
    train, test = np.split(origin_rows(values, replace(WINDOW, lookback=lookback, horizon=horizon)), [3000])
    train = train[: -(lookback + horizon)]

    def error(num_steps: int) -> float:
        pattern = PatternConfig(d_model=16, num_heads=2, patch_length=4, batch_size=192, num_steps=num_steps)
        pattern = replace(pattern, learning_rate=5e-3)
        encoder = fit_pattern_encoder(
            table, [train], config, lookback=lookback, horizon=horizon, scopes=("own",), pattern=pattern
        )
        keys, futures = [], []
        for rows in (train, test):
            batch = pattern_batch(table, encoder.base, {0: rows}, view=24, lookback=lookback)
            context = np.stack([values[row - 23 : row + 1] for row in rows])[:, None].astype(np.float32)
            keys.append(encoder.encode(24, context, np.array([0]), ("own",)).keys["own"][:, 0])
            futures.append(batch.future.numpy())
        distance = np.square(keys[1][:, None] - keys[0]).sum(axis=2)
        nearest = np.argsort(distance, axis=1)[:, :20]
        return float(np.square(futures[0][nearest].mean(axis=1) - futures[1]).mean())

    assert error(50) < 0.9 * error(0)


def test_windows_that_all_overlap_cannot_be_learned_from(tmp_path):
    short = replace(SPLIT, train_until=str(TIMES[80]))
    with pytest.raises(DataError, match="pattern"):
        make(tmp_path, split=short)


# The version


def test_a_version_with_learned_keys_is_whole(version, memory):
    assert verify(version) == ()
    assert verify_contents(version, load_encoder=load_encoder) == []
    neighbours = memory.search(queries_at(TABLE, [200, 300]), 5)
    assert neighbours.valid.any(axis=-1).any()
    assert np.isfinite(neighbours.forecast()).all()


def test_it_is_not_opened_without_what_reads_it(version):
    with pytest.raises(IncompatibleError, match="pattern"):
        open_version(version)
    indexes_dir = version.path.parents[1]
    assert open_memory(indexes_dir, "m", load_encoder=load_encoder).encoder.fingerprint


def test_weights_that_do_not_fit_the_settings_are_refused(version):
    manifest = replace(
        version.manifest, encoder=version.manifest.encoder | {"pattern": {"d_model": 16, "num_heads": 2}}
    )
    with pytest.raises(VerificationError, match="weights"):
        load_encoder(version.path, manifest)


def test_append_and_compact_use_the_stored_encoder(tmp_path, memory):
    make(tmp_path)
    store = Store(tmp_path)
    grown = append(store, "m", between(TABLE, 0, 300), load_encoder=load_encoder)
    merged = compact(store, grown.ref, load_encoder=load_encoder)
    memories = [open_version(each, load_encoder=load_encoder, threads=1) for each in (grown, merged)]
    asked = queries_at(TABLE, [240, 290, 330])
    assert_same(memories[0].search(asked, 7), memories[1].search(asked, 7))
    early = take(asked, slice(0, 1))
    assert_same(memories[0].search(early, 7), memory.search(early, 7))
    assert memories[0].encoder.fingerprint == memory.encoder.fingerprint
    assert len(memories[0].windows) > len(memory.windows)


def test_training_neighbours_are_cross_fitted_with_the_same_kind(tmp_path, memory):
    options = {"policy": Policy.DISJOINT, "k": 5, "stride": 3, "horizon": WINDOW.horizon}
    halves = FoldPlan(kind="time", num=2, gap=WINDOW.length)
    cache = training_neighbours(memory, TABLE, folder=tmp_path, folds=halves, **options)
    own = np.unique(cache.origin_row[cache.fold == 1])
    rows = training_origins()[0]
    others = rows[(rows <= own[0] - WINDOW.length) | (rows >= own[-1] + WINDOW.length)]
    trial = open_version(make(tmp_path / "trial", fit_origins=[others] * 3), load_encoder=load_encoder)
    expected = condense(trial.search(queries_at(TABLE, own, Policy.DISJOINT), 5), cache.spaces)
    np.testing.assert_array_equal(cache.condensed.row[cache.fold == 1], expected.row)


@pytest.mark.parametrize("val_until", [SPLIT.val_until, None])
def test_it_is_compared_with_the_built_in_one(tmp_path, val_until):
    split = replace(SPLIT, val_until=val_until)
    review = partial(compare_with_built_in, TABLE)
    notes = make(tmp_path, split=split, review=review).manifest.built.notes
    assert len(notes) == 1
    assert "memory-only MSE" in notes[0]
    assert ("validation part" if val_until else "last tenth") in notes[0]
    if val_until:
        from memory_index.memory_only import MemoryOptions, evaluate

        scores = [
            evaluate(each, TABLE, "val", options=MemoryOptions(on_empty="last-value")).mse
            for each in (
                open_memory(tmp_path, "m", load_encoder=load_encoder),
                open_version(build(TABLE, Store(tmp_path), "d", window=WINDOW, split=split, encoder=ENCODER)),
            )
        ]
        assert notes[0].endswith(f"memory-only MSE {scores[0]:.4f} against {scores[1]:.4f}")
        assert ("no better" in notes[0]) == (scores[0] >= scores[1])


# The command


@pytest.fixture
def cli(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("forecaster.learned_keys.fit_pattern.PatternConfig", lambda: PATTERN)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main.run([*map(str, arguments), "--indexes-dir", str(tmp_path / "indexes")])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_every_command_works_on_a_version_with_learned_keys(tmp_path, cli):
    rows = np.arange(400)
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=400, freq="h")})
    frame["a"] = np.sin(rows * 2 * np.pi / 24) + np.random.default_rng(0).normal(size=400) / 5
    frame["b"] = np.cos(rows * 2 * np.pi / 24) + np.random.default_rng(1).normal(size=400) / 5
    frame.to_csv(tmp_path / "x.csv", index=False)
    file = tmp_path / "x.csv"
    shape = ("--lookback", 36, "--horizon", 8, "--views", 12)
    code, out, err = cli("index", "build", file, "--name", "p", *shape, "--encoder", "pattern", "--json")
    assert code == 0, err
    assert "memory-only MSE" in json.loads(out)["notes"][0]
    code, out, _ = cli("index", "show", "p")
    assert "pattern forecasts" in " ".join(out.split())
    at = frame["date"].iloc[350].isoformat()
    for command in (
        ("index", "append", "p", file),
        ("index", "compact", "p"),
        ("index", "verify", "p"),
        ("index", "neighbours", "p", file, "--series", "a", "--at", at),
        ("evaluate", file, "--index", "p", "--on-empty", "last-value"),
        ("forecast", file, "--index", "p"),
    ):
        code, out, err = cli(*command)
        assert code == 0, (command, err)
    code, _, err = cli("index", "build", file, "--name", "q", *shape, "--encoder", "neural")
    assert (code, "dual or pattern" in err) == (2, True)
