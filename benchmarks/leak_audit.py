"""What a memory would retrieve without a time guard: how many of the nearest windows a query must not see.

    python -m benchmarks.leak_audit [FILE]

Builds a version of a table (default: the embedded sample), asks with its own training windows, own scope, k = 10, once
without any guard and once under each policy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.report import Figure, show
from memory_index.exact_scan import Ranges
from memory_index.leakage import Policy, is_admissible
from memory_index.search import search_group
from memory_index.splits import split_by_name
from memory_index.tables.catalog import shipped
from memory_index.tables.reading import read_table
from memory_index.types import KeySpace
from memory_index.versions.build import build
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store
from memory_index.windows import WindowSpec

WINDOW, K, STRIDE = WindowSpec(lookback=336, horizon=48), 10, 5


def main() -> None:
    """Build, ask without and with the guard, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=shipped("sample.csv"))
    options = parser.parse_args()
    table = read_table(options.file)
    with tempfile.TemporaryDirectory() as folder:
        split = split_by_name("70/10/20", table.series[0].times)
        memory = open_version(build(table, Store(folder), "audit", window=WINDOW, split=split))
        windows, segment = memory.windows, memory.segments[0]
        shares: dict[str, list[np.ndarray]] = {"late": [], "overlap": [], "late without the nearest": []}
        for view in windows.views:
            for number in range(segment.num_series):
                group, rows = segment.groups[KeySpace("own", view)][number], segment.rows("own", number)
                asked = np.arange(0, len(rows), STRIDE)
                everything = Ranges(0, np.full(len(asked), len(rows)), np.full(len(asked), len(rows)), len(rows))
                found = rows[search_group(group, group.keys[asked], everything, K + 1)[1]]
                spans, mine = windows.spans(found), windows.spans(rows[asked])
                origin = windows.origin(rows[asked])[:, None]
                query = {"origin": origin, "query_start": mine.start_at[:, None], "query_end": mine.end_at[:, None]}
                late = ~is_admissible(Policy.CAUSAL, spans, **query)
                overlap = ~is_admissible(Policy.DISJOINT, spans, **query)
                shares["late"].append(late[:, :K].ravel())
                shares["late without the nearest"].append(late[:, 1:].ravel())
                shares["overlap"].append(overlap[:, :K].ravel())
    means = {name: float(np.concatenate(parts).mean()) for name, parts in shares.items()}
    guarded = "none, checked by every result"
    show(
        f"Leak audit of {options.file.name}",
        "python -m benchmarks.leak_audit",
        [
            Figure("not known at the origin, of the 10 nearest", f"{means['late']:.0%}", "", guarded),
            Figure("the same, the nearest one dropped", f"{means['late without the nearest']:.0%}", "", guarded),
            Figure("overlapping the query's own window", f"{means['overlap']:.0%}", "", guarded),
        ],
        None,
    )


if __name__ == "__main__":
    main()
