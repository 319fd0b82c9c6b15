"""The forecaster: a torch model that joins a lookback window with what a memory retrieves for it.

    from forecaster import Forecaster

    Forecaster(horizon=48).fit(history).predict()

Public names are loaded when they are first asked for: a forecast does not pay for what only training needs. Read
`model/types.py` first, then `model/model.py`, `model/gram.py`, `model/tapr.py`, `pipeline.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forecaster.config import Config
    from forecaster.errors import (
        BackboneNotFoundError,
        ConfigError,
        RunDamagedError,
        RunIncompatibleError,
        RunNotFoundError,
    )
    from forecaster.explain import Explanation
    from forecaster.learned_keys.pattern_encoder import load_encoder
    from forecaster.pipeline import Forecaster
    from forecaster.predictor import Predictor, load_predictor
    from forecaster.runs.run import Run, open_run
    from forecaster.training.fit import Trained, train_run

_HOMES = {
    "BackboneNotFoundError": "errors",
    "Config": "config",
    "ConfigError": "errors",
    "Explanation": "explain",
    "Forecaster": "pipeline",
    "Predictor": "predictor",
    "Run": "runs.run",
    "RunDamagedError": "errors",
    "RunIncompatibleError": "errors",
    "RunNotFoundError": "errors",
    "Trained": "training.fit",
    "load_encoder": "learned_keys.pattern_encoder",
    "load_predictor": "predictor",
    "open_run": "runs.run",
    "train_run": "training.fit",
}

__all__ = [
    "BackboneNotFoundError",
    "Config",
    "ConfigError",
    "Explanation",
    "Forecaster",
    "Predictor",
    "Run",
    "RunDamagedError",
    "RunIncompatibleError",
    "RunNotFoundError",
    "Trained",
    "load_encoder",
    "load_predictor",
    "open_run",
    "train_run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"forecaster.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'forecaster' has no attribute '{name}'")
