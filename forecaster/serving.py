"""A run behind a service: a table in, a forecast or an explanation out. What mounts it is `memory_index/service/`.

    {"history": [{"unique_id": "load", "ds": "2024-09-25T23:00", "y": 12.3}, ...], "quantiles": [0.1, 0.5, 0.9]}

`history` is a long or wide table, row by row, or column by column; null is a missing cell. `future` and `static` are
the places of what is known of the steps ahead and of each series; a run without covariates takes neither. An Arrow
stream is the history alone, and so is CSV; the rest then stands in the address (`?quantiles=0.1,0.9`). A table is read
as `cli forecast` reads a file, and forecast by the same functions, bit for bit.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import pyarrow as pa

from forecaster.explain import explain
from forecaster.forecast import forecast
from forecaster.predictor import Predictor, load_predictor, require_same_memory
from forecaster.runs.intervals import require_calibrated
from forecaster.runs.run import Run, open_run
from memory_index.arrow_streams import read_batches
from memory_index.documents import jsonable
from memory_index.errors import DataError, UsageError
from memory_index.memory import Memory
from memory_index.messages import read_document
from memory_index.queries import require_no_longer_step, require_same_data
from memory_index.references import MILVUS_SCHEMES, OLD_SCHEMES, SERVICE_SCHEMES
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_frame, read_table
from memory_index.tables.recorded_roles import with_recorded
from memory_index.tables.series import SeriesTable
from memory_index.versions.manifest import Manifest

if TYPE_CHECKING:
    from memory_index.service.app import RunQuestion

LEVELS = (0.1, 0.5, 0.9)
CELL_BYTES = 2  # of a message, for each cell that a table may have at the most
KEYS = {"forecast": {"history", "future", "static", "quantiles"}}
KEYS["explain"] = {"history", "series", "at", "quantiles"}


class Asked(NamedTuple):
    """A request in parts. history: a frame, or CSV."""

    history: pd.DataFrame | bytes
    levels: tuple[float, ...]
    series: str
    at: str


@dataclass(frozen=True, kw_only=True)
class Served:
    """A run that answers (`memory_index.service.app.ServedRun`). ref: the version that it asks by default. trained: the
    one that it was trained against.
    """

    ref: str
    trained: str
    run: Run
    predictor: Predictor

    @property
    def folder(self) -> Path:
        """Where the run lies, which clients are not told."""
        return self.run.path

    def answer(self, question: RunQuestion, memory: Memory, ref: str) -> tuple[str, bytes]:
        """The forecast as JSON, CSV or an Arrow stream, or the explanation as JSON.

        Raises `UsageError` and `DataError` for what cannot be read, `RunIncompatibleError` for a version that is not
        the run's own or a newer one, and what `forecast` and `explain` raise.
        """
        asked = read_asked(question)
        require_calibrated(asked.levels)
        require_same_memory(self.run, memory.manifest, ref, newer=ref != self.trained)
        table = read_history(asked.history, memory.manifest, question)
        require_same_data(table, memory.windows, ref)
        made: dict[str, Any] = {
            "run": self.run.path.name,
            "ref": ref,
            "fingerprint": memory.manifest.fingerprint,
            "notes": table.notes,
        }
        if question.action == "explain":
            at = table.step.parse(asked.at)
            found = explain(self.predictor, memory, table, asked.series, at, levels=asked.levels)
            return "application/json", json.dumps(jsonable(made | found.to_document(table.step))).encode()
        result = forecast(self.predictor, memory, table, quantiles=asked.levels)
        if "text/csv" in question.accept:
            return "text/csv; charset=utf-8", result.to_csv(index=False).encode()
        if "arrow" in question.accept:
            return "application/vnd.apache.arrow.stream", _as_arrow(result)
        rows = result.assign(ds=[time.isoformat() for time in result["ds"]]).to_dict("records")
        made |= {"horizon": self.predictor.config.model.horizon, "num_series": len(table.series), "forecast": rows}
        return "application/json", json.dumps(jsonable(made)).encode()


def open_served(folder: Path, refs: Sequence[str], *, device: str = "auto") -> Served:
    """A run that asks, of the references that are served, the version that it was trained against, or else what they
    call by the same name; where neither is served, it is the version that it was trained against.

    Raises what `open_run` and `load_predictor` raise.
    """
    run = open_run(folder.absolute())
    trained = run.record.index.ref
    if trained.startswith((*SERVICE_SCHEMES, *OLD_SCHEMES, *MILVUS_SCHEMES)):
        trained = trained.rpartition("/")[2]
    same = [ref for ref in refs if ref.rpartition("/")[2].partition("@")[0] == trained.partition("@")[0]]
    ref = trained if trained in same or not same else same[0]
    return Served(ref=ref, trained=trained, run=run, predictor=load_predictor(run, device=device))


def read_asked(question: RunQuestion) -> Asked:
    """What a request asks. Raises `UsageError`."""
    document: dict[str, Any] = dict(question.query)
    if question.kind == "application/json":
        document |= read_document(question.body)
        history: Any = _frame(document.get("history"))
    else:
        history = question.body if question.kind == "text/csv" else _from_arrow(question)
    known = KEYS[question.action] | {"index"}
    if unknown := set(document) - known:
        raise UsageError(f"'{min(unknown)[:40]}' is not asked here", hint=f"known are {', '.join(sorted(known))}")
    for name in ("future", "static"):
        if document.get(name) is not None:
            raise UsageError(
                f"'{name}' is not taken: covariates are columns of the history",
                hint="leave it out; rows of the history after the last target value are the future",
            )
    series, at = (str(document.get(name, "")) for name in ("series", "at"))
    if question.action == "explain" and not (series and at):
        raise UsageError("an explanation is of one 'series' 'at' one time", hint="both stand beside the history")
    return Asked(history, _levels(document.get("quantiles", LEVELS)), series, at)


def _levels(asked: Any) -> tuple[float, ...]:
    try:
        asked = [each for each in asked.split(",") if each] if isinstance(asked, str) else asked
        levels = tuple(sorted(float(level) for level in asked))
    except (TypeError, ValueError):
        levels = (0.0,)
    if not all(0 < level < 1 for level in levels) or len(set(levels)) != len(levels):
        raise UsageError("'quantiles' must be different numbers between 0 and 1", hint="for example 0.1,0.5,0.9")
    return levels


def _frame(history: Any) -> pd.DataFrame:
    """Rows, each an object, or an object of columns."""
    try:
        if isinstance(history, (list, dict)) and history:
            return pd.DataFrame(history)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"'history' is not a table: {str(error)[:100]}", hint="columns are equally long") from error
    raise UsageError("'history' must be a table", hint='[{"unique_id": "a", "ds": "2024-01-01", "y": 1.5}, ...]')


def _from_arrow(question: RunQuestion) -> pd.DataFrame:
    batches = list(read_batches(question.body))
    cells, most = (
        sum(batch.num_rows * batch.num_columns for batch in batches),
        question.limits.max_message // CELL_BYTES,
    )
    if cells > most:
        raise UsageError(f"a history has at most {most:,} cells, not {cells:,}", hint="send fewer rows")
    if not batches:
        raise UsageError("the message holds no rows")
    frame: pd.DataFrame = pa.Table.from_batches(batches).to_pandas()
    return frame


def read_history(history: pd.DataFrame | bytes, manifest: Manifest, question: RunQuestion) -> SeriesTable:
    """The table, read like the version's own data, covariates too: rows after the last target value are the future.

    Raises what `read_table` raises, and `DataError` for too many series.
    """
    step = manifest.step
    most = question.limits.max_message // CELL_BYTES
    plain = ReadOptions(step=step.frequency, time_zone=step.time_zone, max_cells=most)
    options = with_recorded(plain, manifest.recorded_covariates, manifest.reading)
    if isinstance(history, bytes):
        with tempfile.TemporaryDirectory(prefix="forecast-") as folder:
            file = Path(folder) / "history.csv"
            file.write_bytes(history)
            table = read_table(file, options)
    else:
        table = read_frame(history, options)
    require_no_longer_step(table, "the version")
    if len(table.series) > question.limits.max_windows:
        raise DataError(
            f"{len(table.series):,} series at once, but this service allows {question.limits.max_windows:,}",
            hint="ask in parts",
        )
    return table


def _as_arrow(result: pd.DataFrame) -> bytes:
    table, sink = pa.Table.from_pandas(result, preserve_index=False), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
