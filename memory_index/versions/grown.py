"""A version with everything that a table holds behind it, in a temporary place and under no name of its own.

Under `causal` it answers each query as a version of that query's origin would: whatever became known later is not
admissible. So one grown version serves a whole backtest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memory_index.errors import NothingNewError
from memory_index.local import LocalMemory
from memory_index.tables.series import SeriesTable
from memory_index.versions.append import append
from memory_index.versions.opening import LoadEncoder, open_version
from memory_index.versions.store import Store
from memory_index.versions.version import Version


@contextmanager
def grown(
    version: Version,
    table: SeriesTable,
    *,
    load_encoder: LoadEncoder | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[LocalMemory]:
    """The version with the windows of `table` appended, for the length of the block. The version stays as it is.

    Series that the version does not have stay out. note: told what `append` notes. Raises what `append` does, but for
    `NothingNewError`: then the version has everything already.
    """
    with tempfile.TemporaryDirectory(prefix="grown-") as folder:
        store = Store(folder)
        place = store.location(version.name, version.number).path
        place.parent.mkdir(parents=True)
        place.symlink_to(Path(version.path).resolve(), target_is_directory=True)
        known = [n for n, name in enumerate(table.series_ids) if name in version.manifest.series_ids]
        try:
            child = append(store, version.ref, table.of_series(known), load_encoder=load_encoder)
            for said in child.manifest.built.notes:
                note(said)
        except NothingNewError:
            child = store.resolve(version.ref)
        yield open_version(child, load_encoder=load_encoder)
