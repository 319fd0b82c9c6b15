"""The memory index on ETTh1: build, neighbours of every window, latency, append, start-up.

    python -m benchmarks.memory_speed --data-dir datasets

Skips, saying so, when ETTh1.csv is not in the folder (`cli data fetch ETTh1`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Figure, milliseconds, run_cli, show, timed
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.queries import query_blocks
from memory_index.references import open_memory
from memory_index.search import squared_distances
from memory_index.splits import part_origins
from memory_index.tables.reading import read_table
from memory_index.tables.series import SeriesTable
from memory_index.types import KeySpace, Queries
from memory_index.windows import cut

LOOKBACK, HORIZON, K = 512, 96, 50
SPLIT_ROWS = {"train": Policy.DISJOINT, "val": Policy.CAUSAL, "test": Policy.CAUSAL}
WEEK = 168


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    file = next(iter(sorted(options.data_dir.rglob("ETTh1.csv"))), None)
    if file is None:
        print(f"skipped: no ETTh1.csv below {options.data_dir} (cli data fetch ETTh1)", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(file, Path(folder))
    show("Memory index on ETTh1", "python -m benchmarks.memory_speed --data-dir datasets", figures, options.out)


def measure(file: Path, folder: Path) -> list[Figure]:
    """All figures, in the order of the table."""
    indexes = folder / "indexes"
    build = ["index", "build", str(file), "--name", "etth1", "--split", "ett-hourly", "--lookback", str(LOOKBACK)]
    build += ["--horizon", str(HORIZON), "--indexes-dir", str(indexes), "--json"]
    seconds, peak, document = run_cli(*build)
    figures = [
        Figure(
            "build from a cold start",
            f"{seconds:.1f} s, {peak:.0f} MB peak",
            "15 s, 1 GB",
            f"{document['num_rows']:,} windows, {document['bytes'] / 1e6:.0f} MB on disk",
        )
    ]
    table, memory = read_table(file), open_memory(indexes, "etth1")
    figures += neighbours_of_all(memory, table)
    figures += latency(memory, table)
    figures += append(file, indexes, folder, document["bytes"])
    times = [run_cli("--help")[0] for _ in range(5)]
    figures.append(Figure("`cli --help`", f"{statistics.median(times):.2f} s", "0.5 s", ""))
    return figures


def neighbours_of_all(memory: LocalMemory, table: SeriesTable) -> list[Figure]:
    """Every training, validation and test window, all views, own and joint, and brute force beside it."""
    spec, split = memory.windows.spec, memory.manifest.split

    def search_all(scopes: tuple[str, ...] | None) -> int:
        num = 0
        for part, policy in SPLIT_ROWS.items():
            origins = part_origins(table, spec, split, part)
            for block in query_blocks(table, origins, spec, policy, known=table.series_ids):
                memory.search(block.queries, K, scopes=scopes)
                num += block.row.size
        return num

    with_joint, num = timed(lambda: search_all(("own", "joint")))
    rounds = [
        (timed(lambda: search_all(("own",)))[0], timed(lambda: brute_force_all(memory, table))[0]) for _ in range(5)
    ]
    ours, brute = (statistics.median(times) for times in zip(*rounds, strict=True))
    ratio = statistics.median(slow / quick for quick, slow in rounds)
    agreed, compared = agreement(memory, table)
    return [
        Figure(f"neighbours of all {num:,} windows, 3 views, own and joint, K = {K}", f"{with_joint:.1f} s", "30 s"),
        Figure(
            "the same, own only",
            f"{ours:.1f} s, {num / ours:,.0f} windows/s",
            "2 x brute force",
            f"torch brute force (matmul, mask, topk): {brute:.1f} s, {ratio:.2f} x slower (medians of 5 turns)",
        ),
        Figure(
            "equal to an exact search of the same keys",
            f"{agreed:,} of {compared:,} rows",
            "all",
            "every stored window compared, every 97th query",
        ),
    ]


def brute_force_all(memory: LocalMemory, table: SeriesTable) -> None:
    """The straightforward way: normalised raw windows, one matrix product, a mask, `topk`.

    Own scope, with the same K and policies as the memory.
    """
    spec, split = memory.windows.spec, memory.manifest.split
    parts = {part: part_origins(table, spec, split, part)[0] for part in SPLIT_ROWS}
    stored = torch.from_numpy(parts["train"])
    for view in memory.windows.views:
        for series in table.series:
            values = torch.from_numpy(series.values.astype(np.float32)).unfold(0, view, 1)

            def normalised(rows: np.ndarray, values: torch.Tensor = values, view: int = view) -> torch.Tensor:
                windows = values[torch.from_numpy(rows) - view + 1]
                return (windows - windows.mean(1, keepdim=True)) / (windows.std(1, keepdim=True) + 1e-5)

            keys = normalised(parts["train"])
            lengths = keys.square().sum(1)
            for part, policy in SPLIT_ROWS.items():
                queries, origin = normalised(parts[part]), torch.from_numpy(parts[part])
                for start in range(0, len(queries), 256):
                    distance = lengths - 2 * queries[start : start + 256] @ keys.T
                    gap = stored - origin[start : start + 256, None]
                    hidden = gap > -spec.horizon if policy is Policy.CAUSAL else gap.abs() < spec.length
                    distance[hidden] = torch.inf
                    distance.topk(K, dim=1, largest=False)


def agreement(memory: LocalMemory, table: SeriesTable) -> tuple[int, int]:
    """How many of the retrieved rows a full scan of the same keys has at the same rank, on a sample of windows."""
    spec, stored = memory.windows.spec, part_origins(table, memory.windows.spec, memory.manifest.split, "train")[0]
    agreed = compared = 0
    segment = memory.segments[0]
    for part, policy in SPLIT_ROWS.items():
        origins = [rows[::97] for rows in part_origins(table, spec, memory.manifest.split, part)]
        for block in query_blocks(table, origins, spec, policy, known=table.series_ids):
            found = memory.search(block.queries, K, scopes=("own",))
            gap = stored - block.row[:, :1]
            visible = gap <= -spec.horizon if policy is Policy.CAUSAL else np.abs(gap) >= spec.length
            for v, space in enumerate(found.spaces):
                encoded = memory.encoder.encode(
                    space.view, block.queries.context, np.arange(len(table.series)), ("own",)
                )
                for n in range(len(table.series)):
                    keys, rows = segment.groups[KeySpace("own", space.view)][n].keys, segment.rows("own", n)
                    alike = segment.windows.flat[rows, v] == encoded.statistics.flat[:, n, None]
                    every = np.where(visible & alike, np.arange(len(stored)), -1)
                    distance = squared_distances(keys, encoded.keys["own"][:, n], every)
                    best = np.lexsort((every, distance), axis=-1)[:, :K]
                    nearest = np.where(np.isfinite(np.take_along_axis(distance, best, axis=1)), rows[best], -1)
                    agreed += int((nearest == found.row[:, n, v]).sum())
                    compared += nearest.size
    return agreed, compared


def latency(memory: LocalMemory, table: SeriesTable) -> list[Figure]:
    """One window at a time, in process."""
    spec = memory.windows.spec
    rows = part_origins(table, spec, memory.manifest.split, "test")[0]
    contexts = [
        np.stack([cut(s.values.astype(np.float32), r - spec.lookback + 1, spec.lookback) for s in table.series])
        for r in rows[:500]
    ]

    def ask(i: int, num_series: int, **search) -> None:
        queries = Queries(
            context=contexts[i][None, :num_series],
            origin=table.series[0].times[rows[i] : rows[i] + 1],
            series_id=np.array(table.series_ids[:num_series]),
            policy=Policy.CAUSAL,
        )
        memory.search(queries, 10, **search)

    pooled = milliseconds(lambda i: ask(i, 1, scopes=("pooled",), views=(96,)), 500)
    own = milliseconds(lambda i: ask(i, 1, scopes=("own",)), 500)
    moment = milliseconds(lambda i: ask(i, len(table.series), scopes=("own", "joint")), 500)
    everything = milliseconds(lambda i: ask(i, len(table.series)), 200)
    num_keys = len(memory.segments[0].windows)

    def text(times: tuple[float, float]) -> str:
        return f"p50 {times[0]:.2f} ms, p99 {times[1]:.2f} ms"

    return [
        Figure(f"one query, one view, pooled, {num_keys:,} keys", text(pooled), "p50 2 ms, p99 5 ms"),
        Figure("one query of one series, own, 3 views", text(own)),
        Figure("one moment of 7 series, own and joint, 3 views each", text(moment)),
        Figure("one moment of 7 series, all scopes and views (9 key spaces)", text(everything)),
    ]


def append(file: Path, indexes: Path, folder: Path, num_bytes: int) -> list[Figure]:
    """A week of all series more: what it costs in time and in bytes that are not shared with the version before."""
    lines = file.read_text().splitlines()
    longer = folder / "longer.csv"
    longer.write_text("\n".join(lines[: 1 + 8640 + WEEK]) + "\n")
    seconds, _, document = run_cli("index", "append", "etth1@1", str(longer), "--indexes-dir", str(indexes), "--json")
    number = document["version"]
    new = sum(
        path.stat().st_size
        for path in (indexes / "etth1" / f"{number:06d}").rglob("*")
        if path.is_file() and path.stat().st_nlink == 1
    )
    return [
        Figure(
            f"append {WEEK} steps x 7 series",
            f"{seconds:.2f} s from a cold start, {document['seconds']:.2f} s of it appending",
            "2 s",
            f"{new / 1e6:.2f} MB of new bytes, {new / num_bytes:.1%} of the version (goal 5%)",
        )
    ]


if __name__ == "__main__":
    main()
