"""Whether the learned key of a memory forecasts better than the built-in one would: scored before it is published."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from forecaster.retrieval.cross_fit import trial_memory
from memory_index.errors import MemoryIndexError, ResourceError
from memory_index.fit_encoder import fit_encoder
from memory_index.local import LocalMemory
from memory_index.memory_only import MemoryOptions, evaluate
from memory_index.splits import Split
from memory_index.tables.series import SeriesTable

HELD_OUT = 0.1  # of the training part, where the split has no validation part to compare on
OPTIONS = MemoryOptions(on_empty="last-value")


def compare_with_built_in(table: SeriesTable, memory: LocalMemory) -> tuple[str, ...]:
    """A note for the version: memory-only MSE of its learned keys and of the built-in ones, under `causal`.

    On the validation part. Without one, on the last tenth of the training part, by memories of the first nine tenths,
    both encoders fitted on those. memory: with the learned encoder, not yet published. What cannot be scored is said.
    """
    manifest = memory.manifest
    try:
        with TemporaryDirectory(prefix="compare-") as folder:
            if manifest.split.val_until is not None:
                split, where = manifest.split, "the validation part"
                learned = evaluate(memory, table, "val", options=OPTIONS).mse
            else:
                split, where = held_out_split(table, manifest.split), "the last tenth of the training part"
                with trial_memory(manifest, table, Path(folder) / "learned", split=split) as trial:
                    learned = evaluate(trial, table, "val", options=OPTIONS).mse
            with trial_memory(manifest, table, Path(folder) / "dual", split=split, fit=fit_encoder) as trial:
                built_in = evaluate(trial, table, "val", options=OPTIONS).mse
    except ResourceError:
        raise
    except MemoryIndexError as error:
        return (f"encoder {manifest.encoder['kind']} was not compared with dual: {error}",)
    verdict = "better than" if learned < built_in else "no better than"
    scores = f"memory-only MSE {learned:.4f} against {built_in:.4f}"
    return (f"encoder {manifest.encoder['kind']} forecasts {verdict} dual on {where}: {scores}",)


def held_out_split(table: SeriesTable, split: Split) -> Split:
    """The training part of a split cut by time: nine tenths for training, then one for validation."""
    times = table.times[table.times <= np.datetime64(split.train_until, "ns")]
    last = times[max(0, int((1 - HELD_OUT) * len(times)) - 1)]
    return Split(name="held-out", train_until=str(last), val_until=str(times[-1]), test_until=None)
