"""A global retrieval-augmented memory: windows of the past, searchable under a time guard.

It is built and kept as versions that never change.

    table = read_table("load.csv")
    split = split_by_name("70/10/20", table.times)
    version = build(table, Store("indexes"), "load", window=WindowSpec(lookback=336, horizon=48), split=split)
    memory = open_memory("indexes", version.ref)
    neighbours = memory.search(Queries(context=..., origin=..., series_id=..., policy=Policy.CAUSAL), k=50)
    neighbours.forecast()

Public names are loaded when they are first asked for: an error class does not pay for FAISS. Needs numpy, pandas,
pyarrow, faiss and safetensors; never torch. Read `types.py` first, then `neighbours.py`, `memory.py` and `local.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory_index.access import Access
    from memory_index.bounds import Bounds
    from memory_index.encoder import EncoderConfig, KeyEncoder
    from memory_index.errors import (
        DataError,
        IncompatibleError,
        MemoryIndexError,
        NotFoundError,
        NothingNewError,
        ResourceError,
        ServiceError,
        UsageError,
        VerificationError,
    )
    from memory_index.evaluation import Evaluation
    from memory_index.inspection import Inspection, inspect_window
    from memory_index.leakage import LeakError, Policy
    from memory_index.memory import Memory
    from memory_index.memory_only import MemoryOptions, evaluate, forecast
    from memory_index.neighbours import Neighbours
    from memory_index.origins import Schedule, parse_schedule
    from memory_index.queries import query_blocks
    from memory_index.references import open_memory
    from memory_index.remote import RemoteMemory
    from memory_index.splits import Split, split_by_name, split_until
    from memory_index.tables.columns import ReadOptions
    from memory_index.tables.future import read_future
    from memory_index.tables.reading import read_frame, read_table
    from memory_index.tables.series import Series, SeriesTable
    from memory_index.tables.steps_ahead import make_future, missing_future
    from memory_index.tables.vintages import read_vintages
    from memory_index.types import Filter, KeySpace, Queries, Scope
    from memory_index.versions.append import append
    from memory_index.versions.build import build
    from memory_index.versions.compact import compact
    from memory_index.versions.manifest import Manifest
    from memory_index.versions.store import Store
    from memory_index.versions.version import Version, verify
    from memory_index.windows import Step, WindowSpec

_HOMES = {
    "Access": "access",
    "Bounds": "bounds",
    "DataError": "errors",
    "EncoderConfig": "encoder",
    "Evaluation": "evaluation",
    "Filter": "types",
    "IncompatibleError": "errors",
    "Inspection": "inspection",
    "KeyEncoder": "encoder",
    "KeySpace": "types",
    "LeakError": "leakage",
    "Manifest": "versions.manifest",
    "Memory": "memory",
    "MemoryIndexError": "errors",
    "MemoryOptions": "memory_only",
    "Neighbours": "neighbours",
    "NotFoundError": "errors",
    "NothingNewError": "errors",
    "Policy": "leakage",
    "Queries": "types",
    "ReadOptions": "tables.columns",
    "RemoteMemory": "remote",
    "ResourceError": "errors",
    "Schedule": "origins",
    "Scope": "types",
    "Series": "tables.series",
    "SeriesTable": "tables.series",
    "ServiceError": "errors",
    "Split": "splits",
    "Step": "windows",
    "Store": "versions.store",
    "UsageError": "errors",
    "VerificationError": "errors",
    "Version": "versions.version",
    "WindowSpec": "windows",
    "append": "versions.append",
    "build": "versions.build",
    "compact": "versions.compact",
    "evaluate": "memory_only",
    "forecast": "memory_only",
    "inspect_window": "inspection",
    "make_future": "tables.steps_ahead",
    "missing_future": "tables.steps_ahead",
    "open_memory": "references",
    "parse_schedule": "origins",
    "query_blocks": "queries",
    "read_frame": "tables.reading",
    "read_future": "tables.future",
    "read_table": "tables.reading",
    "read_vintages": "tables.vintages",
    "split_by_name": "splits",
    "split_until": "splits",
    "verify": "versions.version",
}

__all__ = [
    "Access",
    "Bounds",
    "DataError",
    "EncoderConfig",
    "Evaluation",
    "Filter",
    "IncompatibleError",
    "Inspection",
    "KeyEncoder",
    "KeySpace",
    "LeakError",
    "Manifest",
    "Memory",
    "MemoryIndexError",
    "MemoryOptions",
    "Neighbours",
    "NotFoundError",
    "NothingNewError",
    "Policy",
    "Queries",
    "ReadOptions",
    "RemoteMemory",
    "ResourceError",
    "Schedule",
    "Scope",
    "Series",
    "SeriesTable",
    "ServiceError",
    "Split",
    "Step",
    "Store",
    "UsageError",
    "VerificationError",
    "Version",
    "WindowSpec",
    "append",
    "build",
    "compact",
    "evaluate",
    "forecast",
    "inspect_window",
    "make_future",
    "missing_future",
    "open_memory",
    "parse_schedule",
    "query_blocks",
    "read_frame",
    "read_future",
    "read_table",
    "read_vintages",
    "split_by_name",
    "split_until",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"memory_index.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'memory_index' has no attribute '{name}'")
