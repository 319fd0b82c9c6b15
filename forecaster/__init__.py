"""The forecaster: a torch model that joins a lookback window with what a memory retrieves for it.

    from forecaster import Forecaster

    Forecaster(horizon=48).fit(history).predict()

Public names are loaded when they are first asked for: a forecast does not pay for what only training needs. Read
`types.py` first, then `model.py`, `gram.py`, `tapr.py`, `pipeline.py`.
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
    from forecaster.evaluate import RunEvaluation
    from forecaster.explain import Explanation
    from forecaster.fit import Trained, train_run
    from forecaster.pattern_encoder import load_encoder
    from forecaster.pipeline import Forecaster
    from forecaster.predictor import Predictor, load_predictor
    from forecaster.run import Run, open_run

_HOMES = {
    "BackboneNotFoundError": "errors",
    "Config": "config",
    "ConfigError": "errors",
    "Explanation": "explain",
    "Forecaster": "pipeline",
    "Predictor": "predictor",
    "Run": "run",
    "RunDamagedError": "errors",
    "RunEvaluation": "evaluate",
    "RunIncompatibleError": "errors",
    "RunNotFoundError": "errors",
    "Trained": "fit",
    "load_encoder": "pattern_encoder",
    "load_predictor": "predictor",
    "open_run": "run",
    "train_run": "fit",
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
    "RunEvaluation",
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
