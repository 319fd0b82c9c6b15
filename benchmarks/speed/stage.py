"""What the parts of the benchmark share: how much is measured, and ETTh1 with a version and a run of it.

Each is made when a part first asks for it, in a temporary folder that belongs to whoever made the stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import run_cli
from memory_index.memory import Memory
from memory_index.references import open_memory
from memory_index.tables.reading import read_table
from memory_index.tables.series import SeriesTable
from memory_index.windows import WindowSpec

if TYPE_CHECKING:
    from forecaster.config import Config

WINDOW = WindowSpec(lookback=512, horizon=96)
NAME = "etth1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured.

    num_rows: of ETTh1, None for all of it. split: of these. turns: of operations that take seconds. every: one in so
    many windows is asked where all would be. repeats: of one question. million: windows of the large memory.
    train_stride: of the run that is made. steps: of training. service_turns, service_budget:
    of one comparison of one client, and seconds after which no further turn begins. service_rounds, service_seconds: of
    full load, and seconds of all of them.
    growth_turns, growth_budget: turns of one point of a curve, at most, and seconds after which no further one begins.
    growth_windows: of the largest memory of the curves.
    """

    num_rows: int | None
    split: str
    turns: int
    every: int
    repeats: int
    million: int
    train_stride: int
    steps: int
    service_turns: int
    service_budget: float
    service_rounds: int
    service_seconds: float
    growth_turns: int
    growth_budget: float
    growth_windows: int


FULL = Sizes(
    num_rows=None,
    split="ett-hourly",
    turns=5,
    every=1,
    repeats=300,
    million=1_000_000,
    train_stride=8,
    steps=15,
    service_turns=40,
    service_budget=25.0,
    service_rounds=4,
    service_seconds=32.0,
    growth_turns=9,
    growth_budget=4.0,
    growth_windows=1_000_000,
)
QUICK = Sizes(
    num_rows=5_000,
    split="70/10/20",
    turns=1,
    every=8,
    repeats=20,
    million=30_000,
    train_stride=8,
    steps=3,
    service_turns=3,
    service_budget=10.0,
    service_rounds=2,
    service_seconds=4.0,
    growth_turns=3,
    growth_budget=0.3,
    growth_windows=30_000,
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """ETTh1 on stage. source: ETTh1.csv. folder: where everything is made."""

    source: Path
    folder: Path
    sizes: Sizes

    @property
    def indexes(self) -> Path:
        """Where versions lie."""
        return self.folder / "indexes"

    @cached_property
    def file(self) -> Path:
        """ETTh1, or the first rows of it."""
        if self.sizes.num_rows is None:
            return self.source
        return self.first_rows(self.sizes.num_rows)

    @cached_property
    def table(self) -> SeriesTable:
        """What is in the file."""
        return read_table(self.file)

    @cached_property
    def memory(self) -> Memory:
        """Its version, all scopes and views by default."""
        if not (self.indexes / NAME).exists():
            self.build_cold()
        return open_memory(self.indexes, f"{NAME}@1")

    def config(self, **settings: Any) -> Config:
        """Default settings but for these, thinned windows, and two steps: a forecast takes as long whatever the
        weights are.
        """
        from forecaster.config import Config  # torch is not for the clients of a service, which are processes too

        shape = {"lookback": WINDOW.lookback, "horizon": WINDOW.horizon}
        return Config.from_dict(shape | {"train_stride": self.sizes.train_stride, "max_steps": 2} | settings)

    @property
    def neighbours(self) -> Path:
        """Where found neighbours lie."""
        return self.folder / "neighbours"

    @cached_property
    def run(self) -> Path:
        """A run of default settings."""
        from forecaster.training.fit import train_run

        out = self.folder / "run"
        train_run(self.table, self.memory, f"{NAME}@1", self.config(), out, neighbours_dir=self.neighbours)
        return out

    def build_cold(self) -> tuple[float, float, dict]:
        """`cli index build` in a process of its own; see `run_cli`."""
        shape = ["--lookback", str(WINDOW.lookback), "--horizon", str(WINDOW.horizon), "--split", self.sizes.split]
        return run_cli(
            "index", "build", str(self.file), "--name", NAME, *shape, "--indexes-dir", str(self.indexes), "--json"
        )

    def first_rows(self, num: int) -> Path:
        """A file with so many rows of ETTh1."""
        lines = self.source.read_text().splitlines()[: 1 + num]
        path = self.folder / f"first-{num}.csv"
        path.write_text("\n".join(lines) + "\n")
        return path
