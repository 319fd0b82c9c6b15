"""Which parts the value gate should mix, and how smooth its weights should be: chosen without a test figure.

    python -m benchmarks.mix_of_parts --data-dir datasets

The gate of docs/method.md mixes the parts' forecasts with weights that are the same for every window. Then the mean
squared error of a mix depends on the windows through one matrix per step of the horizon only,

    mean (sum_p w_p e_p)^2 = w^T G w,     G = mean e e^T,     e_p = error of part p,     sum_p w_p = 1

so the windows are read once, and every arm below is fitted and scored in seconds from G [H, parts, parts].

The parts are the last value, the key spaces of the memory, and linear maps of several kinds (`Map`).

For every arm: (a) the MSE of the validation part with weights fitted on the whole training part, and (b) the MSE of the
training part, cross-validated over its three blocks of time: weights fitted on two, without the windows that share a
step with the third, scored on the third. In both, the parts of training windows are cross-fitted and their neighbours
asked under `disjoint`, as `cli train` has them. At most 96 steps of the horizon are looked at, spread evenly. Shown
relative to the first arm, as a mean over data sets and horizons of both. The test part is not read. A horizon for
which a data set is too short is skipped, saying so; neighbours stay in --work-dir, so that the next call is quick.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch

from benchmarks.data_sets import CHOSEN_ON, DataSet, present
from benchmarks.report import machine
from forecaster.config import Config
from forecaster.model.value_gate import hat_functions
from forecaster.retrieval.batches import CachedWindows
from forecaster.retrieval.folds import off_block, time_blocks
from forecaster.training.fit import run_record
from forecaster.training.fit_gate import LEAST_SHARE, Quadratic, fit_logits, horizon_steps
from forecaster.training.windows import windows_of
from memory_index import Store, WindowSpec, build, open_memory, read_table, split_by_name
from memory_index.errors import DataError
from memory_index.windows import cut

LOOKBACK = 512
NUM_BLOCKS = 3
CHUNK = 4096  # windows handled at once


class Map(NamedTuple):
    """A linear map from a window to its future, both divided by the window's spread.

    location: what is subtracted, the window's `mean` or its `last` value. weight: power of the spread that a window
    counts with where the map is fitted; 0 counts every window the same, 2 is the squared error in the data's units.
    """

    lookback: int
    location: str = "mean"
    weight: int = 0

    def __str__(self) -> str:
        return f"{self.location}-{self.lookback}" + (f"-spread{self.weight}" if self.weight else "")


MAPS = (
    *(Map(lookback) for lookback in (96, 192, 336, 512)),
    *(Map(lookback, weight=1) for lookback in (336, 512)),
    *(Map(lookback, "last", 1) for lookback in (96, 336, 512)),
    Map(336, "last", 2),
)
SHORTCUT = Map(512)  # the one that the model has


class Errors(NamedTuple):
    """What is kept of the windows of a data set and a horizon, of which S steps are looked at.

    parts: names. steps: int64 [S], of the horizon. blocks: float64 [blocks, S, parts, parts], mean of e e^T over the
    windows of each block; weights: [blocks], its share of the windows. rest: likewise over the windows that share no
    step with a block's. train, val: [S, parts, parts], over all training and all validation windows.
    """

    parts: list[str]
    steps: np.ndarray
    horizon: int
    blocks: np.ndarray
    weights: np.ndarray
    rest: np.ndarray
    train: np.ndarray
    val: np.ndarray


def main() -> None:
    """Read every data set once, fit and score every arm, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--data-sets", nargs="*", default=[*CHOSEN_ON], choices=CHOSEN_ON)
    parser.add_argument("--horizons", nargs="*", type=int, default=[96, 192, 336, 720])
    parser.add_argument("--work-dir", type=Path, help="keep indexes and neighbours here")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    found: dict[str, Errors] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for data_set in present(options.data_dir, options.data_sets):
            for horizon in options.horizons:
                name = f"{data_set.name}-{horizon}"
                try:
                    found[name] = errors_of(data_set, horizon, options.work_dir or Path(temporary))
                except DataError as error:
                    print(f"skipped: {name}: {error}", file=sys.stderr)
                    continue
                print(f"{time.strftime('%H:%M:%S')} {name}: read", file=sys.stderr, flush=True)
    if found:
        show({arm: {name: scored(errors, arm) for name, errors in found.items()} for arm in ARMS}, options.out)


SCOPES = ("own", "joint", "pooled")


class Mixed(NamedTuple):
    """An arm: linear maps, scopes of the memory, knots of the weights' course, and how strongly the fit is held at half
    linear maps, half memory.
    """

    maps: tuple[Map, ...] = (SHORTCUT,)
    scopes: tuple[str, ...] = SCOPES
    knots: int = 9
    penalty: float = 0.01
    last_value: bool = True
    equal: bool = False  # held at equal weights instead, the last value too

    def chosen(self, parts: list[str]) -> list[int]:
        """Numbers of its parts."""
        names = {*map(str, self.maps), *(["last value"] if self.last_value else [])}
        return [n for n, part in enumerate(parts) if part in names or part.split("-")[0] in self.scopes]


MEANS, LASTS = MAPS[:4], (Map(96, "last", 1), Map(336, "last", 1), Map(512, "last", 1))
ARMS = {
    f"map {SHORTCUT}, all scopes, 9 knots, penalty 0.01": Mixed(),
    **{f"- penalty {penalty:g}": Mixed(penalty=penalty) for penalty in (0, 0.001, 0.003, 0.03, 0.1, 1)},
    **{f"- penalty {penalty:g}, held at equal weights": Mixed(penalty=penalty, equal=True) for penalty in (0.01, 100)},
    "- 1 knot": Mixed(knots=1),
    "- 3 knots": Mixed(knots=3),
    **{f"- map {each}": Mixed((each,)) for each in MAPS if each != SHORTCUT},
    "- maps mean-336, mean-512": Mixed(MEANS[2:]),
    "- maps mean-96, mean-192, mean-336, mean-512": Mixed(MEANS),
    "- maps last-96, last-336, last-512, spread1": Mixed(LASTS),
    "- all maps": Mixed(MAPS),
    "- all maps, 3 knots": Mixed(MAPS, knots=3),
    "- all maps, no memory": Mixed(MAPS, ()),
    "- no memory": Mixed(scopes=()),
    **{f"- {scope} alone": Mixed(scopes=(scope,)) for scope in SCOPES},
    **{f"- no {scope}": Mixed(scopes=tuple(each for each in SCOPES if each != scope)) for scope in SCOPES},
    **{f"map {each} by itself": Mixed((each,), (), 1, last_value=False) for each in MAPS},
}


def scored(errors: Errors, arm: str) -> tuple[float, float]:
    """MSE of the training part, cross-validated over its blocks, and of the validation part."""
    mixed = ARMS[arm]
    chosen = mixed.chosen(errors.parts)
    at = np.ix_(chosen, chosen)

    def mse(fitted_on: np.ndarray, scored_on: np.ndarray) -> float:
        """Mean over the steps of w^T G w."""
        weights = fitted_weights(fitted_on[(..., *at)], mixed, errors, chosen)
        return float(np.einsum("ps,spq,qs->s", weights, scored_on[(..., *at)], weights).mean())

    held_out = [mse(rest, block) for rest, block in zip(errors.rest, errors.blocks, strict=True)]
    return float(np.dot(errors.weights, held_out)), mse(errors.train, errors.val)


def fitted_weights(matrix: np.ndarray, arm: Mixed, errors: Errors, chosen: list[int]) -> np.ndarray:
    """Weights [parts, S] as the value gate has them, fitted on a mean of e e^T [S, parts, parts]."""
    hats = hat_functions(min(arm.knots, errors.horizon), errors.horizon).double()[:, errors.steps]
    bases = [errors.parts[n] for n in chosen if errors.parts[n].split("-")[0] not in SCOPES]
    free = torch.tensor([part == "last value" for part in bases] + [False] * (len(chosen) - len(bases)))
    maps, spaces = max(1, len(bases) - int(free.sum())), max(1, len(chosen) - len(bases))
    shares = [LEAST_SHARE if part == "last value" else 0.5 / maps for part in bases]
    prior = torch.tensor([*shares, *[0.5 / spaces] * (len(chosen) - len(bases))], dtype=torch.float64)
    if arm.equal:
        prior, free = torch.full_like(prior, 1 / len(prior)), torch.zeros_like(free)
    held = torch.where(free, 0.0, arm.penalty).double()
    whole = Quadratic(torch.ones(len(chosen), dtype=torch.bool), torch.from_numpy(matrix), 1)
    return torch.softmax(fit_logits([whole], prior, held, hats) @ hats, dim=0).numpy()


def errors_of(data_set: DataSet, horizon: int, folder: Path) -> Errors:
    """Build a version, find neighbours, fit the linear maps, and add up the errors of all parts.

    Raises `DataError` if the data are too short for this horizon.
    """
    table, name = read_table(data_set.path), f"{data_set.index}-{horizon}"
    if not (folder / "indexes" / name).exists():
        window = WindowSpec(lookback=LOOKBACK, horizon=horizon)
        split = split_by_name(data_set.split, table.times)
        build(table, Store(folder / "indexes"), name, window=window, split=split)
    memory = open_memory(folder / "indexes", f"{name}@1")
    config = Config.from_dict({"lookback": LOOKBACK, "horizon": horizon, "num_folds": NUM_BLOCKS, "ridge": 0.1})
    record = run_record(table, memory, f"{name}@1", config, None, "cpu")
    train, val = (windows_of(table, memory, config, record, part, folder / "neighbours") for part in ("train", "val"))
    steps, length = horizon_steps(horizon), memory.manifest.window.length
    times = np.concatenate([series.times for series in table.series])[train.position]
    off = [
        off_block(times, table.step, first=first, last=last, length=length)
        for first, last in time_blocks(times, NUM_BLOCKS)
    ]
    maps = [linear_maps(train, each, steps) for each in off]
    assert train.fold is not None, "training windows are cross-fitted"
    numbers = [np.flatnonzero(train.fold == n) for n in range(NUM_BLOCKS)]
    blocks = [summed_errors(train, numbers[n], maps[n], steps) for n in range(NUM_BLOCKS)]
    whole = Sum.of(blocks)
    rest = []
    for n in range(NUM_BLOCKS):
        near = [summed_errors(train, numbers[m][~off[n][numbers[m]]], maps[m], steps) for m in range(NUM_BLOCKS)]
        rest.append(Sum(whole.matrix - Sum.of(near).matrix, whole.num - Sum.of(near).num).mean)
    everything = linear_maps(train, np.ones(len(train), dtype=bool), steps)
    return Errors(
        parts=["last value", *map(str, MAPS), *map(str, train.spaces)],
        steps=steps,
        horizon=horizon,
        blocks=np.stack([block.mean for block in blocks]),
        weights=np.array([block.num / whole.num for block in blocks]),
        rest=np.stack(rest),
        train=whole.mean,
        val=summed_errors(val, np.arange(len(val)), everything, steps).mean,
    )


class Sum(NamedTuple):
    """Sum of e e^T over windows, float64 [S, parts, parts], standardised units, and how many they are."""

    matrix: np.ndarray
    num: int

    @classmethod
    def of(cls, sums: list[Self]) -> Self:
        """All of them together."""
        return cls(np.sum([each.matrix for each in sums], axis=0), sum(each.num for each in sums))

    @property
    def mean(self) -> np.ndarray:
        """Over the windows."""
        return self.matrix / self.num


def linear_maps(windows: CachedWindows, keep: np.ndarray, steps: np.ndarray) -> list[np.ndarray]:
    """Each of `MAPS` in closed form, float32 [lookback, S], fitted on some of the windows. keep: bool [n]."""
    ridge, numbers = windows.config.ridge or 0.1, np.flatnonzero(keep)
    found = []
    for each in MAPS:
        gram, cross, total = np.zeros((each.lookback, each.lookback)), np.zeros((each.lookback, 1)), 0.0
        for start in range(0, len(numbers), CHUNK):
            chosen = numbers[start : start + CHUNK]
            z, location, spread = standardised(windows, chosen, each)
            future = cut(windows.values, windows.position[chosen] + 1, windows.config.horizon)[:, steps]
            future = (future - location) / spread
            weight = (spread / windows.unit[chosen, None]) ** each.weight
            weighted = (z * weight).T.astype(np.float64)
            gram, cross, total = gram + weighted @ z, cross + weighted @ future, total + float(weight.sum())
        solved = np.linalg.solve(gram / total + ridge * np.eye(each.lookback), cross / total)
        found.append(solved.astype(np.float32))
    return found


def standardised(windows: CachedWindows, chosen: np.ndarray, each: Map) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contexts as a map reads them [n, lookback], and their location and spread [n, 1]."""
    context = cut(windows.values, windows.position[chosen] - each.lookback + 1, each.lookback)
    location = context.mean(axis=1, keepdims=True) if each.location == "mean" else context[:, -1:]
    floor = windows.config.spread_floor * windows.unit[chosen, None]
    spread = np.maximum(context.std(axis=1, keepdims=True), floor)
    return (context - location) / spread, location, spread


def summed_errors(windows: CachedWindows, numbers: np.ndarray, maps: list[np.ndarray], steps: np.ndarray) -> Sum:
    """The errors of all parts over some windows; those without a neighbour in some key space are left out."""
    assert windows.condensed is not None, "the gate alone has a memory"
    config, condensed = windows.config, windows.condensed
    num_parts = 1 + len(maps) + len(windows.spaces)
    summed, num = np.zeros((len(steps), num_parts, num_parts)), 0
    for start in range(0, len(numbers), CHUNK):
        chosen = numbers[start : start + CHUNK]
        chosen = chosen[np.asarray(condensed.found[chosen]).all(axis=1)]
        position, unit = windows.position[chosen], windows.unit[chosen, None]
        parts = [cut(windows.values, position, 1).repeat(len(steps), axis=1)]
        for each, weight in zip(MAPS, maps, strict=True):
            z, location, spread = standardised(windows, chosen, each)
            parts.append(z @ weight * spread + location)
        forecasts = np.concatenate([np.stack(parts, axis=1), condensed.forecasts[chosen][..., steps]], axis=1)
        errors = (forecasts - cut(windows.values, position + 1, config.horizon)[:, steps][:, None]) / unit[:, None]
        summed += np.matmul(errors.transpose(2, 1, 0), errors.transpose(2, 0, 1))
        num += len(chosen)
    return Sum(summed, num)


def show(results: dict[str, dict[str, tuple[float, float]]], out: Path | None) -> None:
    """The table, best first: cross-validated training MSE / validation MSE of each data set and horizon."""
    base = next(iter(results.values()))
    relative = {
        arm: float(np.mean([np.divide(mse[name], base[name]) for name in base])) for arm, mse in results.items()
    }
    print(f"{machine()}\n\n| arm | relative MSE | {' | '.join(base)} |\n|---|---|{'---|' * len(base)}")
    for arm in sorted(relative, key=relative.__getitem__):
        cells = " | ".join("{:.4f} / {:.4f}".format(*results[arm][name]) for name in base)
        print(f"| {arm} | {relative[arm]:.4f} | {cells} |")
    if out is not None:
        out.write_text(json.dumps({"relative": relative, "mse": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
