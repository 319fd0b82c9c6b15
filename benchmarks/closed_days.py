"""What it is worth to hold closed days at 0: a seeded shop, closed on Sundays and holidays, scored with and without.

    python -m benchmarks.closed_days

Daily sales of 1,735 days with a weekly season, a drifting level and noise; 0 on Sundays and on German holidays. A run
is trained on the table, and one that knows the holidays; both are scored on the test part, and once more with closed
steps left as they are forecast. Needs the extra `calendar`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd

from forecaster.config import Config
from forecaster.evaluate import evaluate
from forecaster.predictor import load_predictor
from forecaster.training.fit import train_run
from memory_index.bounds import BoundsOf
from memory_index.splits import DEFAULT_SPLIT, split_by_name
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_frame
from memory_index.versions.build import build
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store
from memory_index.windows import WindowSpec

SEED = 5
LOOKBACK, HORIZON = 112, 14
WEEK = (0.9, 0.8, 0.85, 1.0, 1.3, 1.6, 0.0)


def shop_sales(first: str = "2020-01-01", last: str = "2024-09-30", *, seed: int = SEED) -> pd.DataFrame:
    """`date, sales`: 0 where the shop is closed."""
    import holidays

    random, days = np.random.default_rng(seed), pd.date_range(first, last)
    public = holidays.Germany(years=range(days[0].year, days[-1].year + 1))
    is_open = np.array([day.date() not in public for day in days])
    level = 1000 * np.exp(np.cumsum(random.normal(0, 0.01, len(days))))
    sales = level * np.array(WEEK)[days.day_of_week] * np.exp(random.normal(0, 0.08, len(days)))
    return pd.DataFrame({"date": days, "sales": np.where(is_open, sales, 0.0).round(2)})


def main() -> None:
    """Print MAE, sMAPE and WQL of both runs, held at 0 and not."""
    frame = shop_sales()
    for name, options in {
        "without holidays": ReadOptions(),
        "with holidays": ReadOptions(calendar=("auto",), holidays="DE"),
    }.items():
        table = read_frame(frame, options)
        with tempfile.TemporaryDirectory() as folder:
            version = build(
                table,
                Store(Path(folder) / "indexes"),
                "shop",
                window=WindowSpec(lookback=LOOKBACK, horizon=HORIZON),
                split=split_by_name(DEFAULT_SPLIT, table.times),
            )
            memory = open_version(version)
            config = Config.from_dict({"lookback": LOOKBACK, "horizon": HORIZON, "use_network": False})
            out, found = Path(folder) / "run", Path(folder) / "neighbours"
            run = train_run(table, memory, "shop@1", config, out, neighbours_dir=found).run
            predictor = load_predictor(run, device="cpu")
            for held in (True, False):
                with patch.object(BoundsOf, "closed", BoundsOf.closed if held else lambda self, queries: None):
                    score = evaluate(predictor, memory, table).scores["model"]
                numbers = ", ".join(f"{metric} {score[metric]:.4f}" for metric in ("mse", "mae", "smape", "wql"))
                print(f"{name}, {'held at 0' if held else 'as forecast'}: {numbers}")


if __name__ == "__main__":
    main()
