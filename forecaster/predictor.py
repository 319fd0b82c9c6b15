"""A trained model ready to be asked: batches in, forecasts out, as numpy arrays.

Behind a memory with a transform the model works in its units, linear map, gate and network alike; `Predictor.forecast`
and `Predictor.quantiles` are in raw units.

Which windows are asked, and what becomes of the forecasts, is told in `evaluate.py` and `forecast.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forecaster.config import Config
from forecaster.errors import RunIncompatibleError
from forecaster.language_models.backbone import check_reference
from forecaster.language_models.placement import place_backbone, resolve_device
from forecaster.model.model import ForecastModel, num_networks_in
from forecaster.model.types import Batch, ModelOutput
from forecaster.retrieval.batches import LiveBlock, parts_of
from forecaster.retrieval.neighbours import Condensed
from forecaster.runs.intervals import Intervals, MemoryFan, expected_width, read_intervals
from forecaster.runs.run import Run
from forecaster.runs.states import StateRecord, has_states, read_arrays, read_state
from forecaster.runs.weights import WEIGHTS, load_into
from memory_index.memory import Memory
from memory_index.neighbours import Neighbours, mean_over_spaces
from memory_index.transforms import Curve
from memory_index.versions.manifest import Manifest

SHORTCUT_WEIGHT = "shortcut.weight"
SMEARED_LEVELS = tuple((4 * each + 2) / 100 for each in range(25))  # the middles of 25 equally likely parts


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """Forecasts of n windows; float32, units of the memory's transform but for the gates.

    forecast: [n, H]. bases: [n, M, H], what stands beside the memory, by itself. linear: [n, H], the linear map of
    those, None without it. gate: [n, H], the value-space gate. feature_gate: [n], None without a network or GRA-M.
    direction: int64 [n], 0 up, 1 flat, 2 down, None without a network or TAPR. spread: [n], of each window.
    """

    forecast: np.ndarray
    bases: np.ndarray
    linear: np.ndarray | None
    gate: np.ndarray
    feature_gate: np.ndarray | None
    direction: np.ndarray | None
    spread: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """A model with what is needed to use it.

    units: training standard deviation of each series that it was trained on. intervals: calibrated on validation.
    seen_until: datetime64[ns], the end of the validation part that it was trained with, or up to when it has gone on
    since. state: of the run (`runs/states.py`), 0 as it was trained.
    """

    config: Config
    model: ForecastModel
    units: Mapping[str, float]
    intervals: Intervals
    seen_until: np.datetime64
    state: int = 0

    def predict(self, batch: Batch) -> Predicted:
        """See `predict`."""
        return predict(self.model, batch)

    def width(self, memory: Memory, condensed: Condensed | None, *, spread: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """How wide the intervals of n windows are before they are calibrated: see `intervals.expected_width`."""
        manifest, horizon = memory.manifest, self.config.model.horizon
        return expected_width(
            condensed, memory.windows.inside, manifest.key_spaces, spread=spread, unit=unit, horizon=horizon
        )

    def quantiles(
        self, memory: Memory, block: LiveBlock, predicted: Predicted, levels: tuple[float, ...]
    ) -> np.ndarray:
        """Calibrated quantiles of what is predicted of a block, float32 [n, H, Q], raw units.

        Raises `UsageError` for a level that is not calibrated.
        """
        return block.curve.inverse(self._quantiles_inside(memory, block, predicted, levels))

    def forecast(self, memory: Memory, block: LiveBlock, predicted: Predicted) -> np.ndarray:
        """The forecast of a block, float32 [n, H], raw units: a mean, whatever the transform (`smeared`)."""
        if not memory.manifest.transform:
            return predicted.forecast
        return smeared(
            block.curve, predicted.forecast, self._quantiles_inside(memory, block, predicted, SMEARED_LEVELS)
        )

    def _quantiles_inside(
        self, memory: Memory, block: LiveBlock, predicted: Predicted, levels: tuple[float, ...]
    ) -> np.ndarray:
        """See `quantiles`: in units of the transform."""
        width = self.width(memory, block.condensed, spread=predicted.spread, unit=block.batch.unit.numpy())
        series_ids = [*map(str, block.asked.queries.series_id)] * len(block.asked.wanted)  # moment after moment
        fan = (
            None
            if block.found is None
            else memory_fan(block.found.inside(), block.condensed, levels, predicted.forecast.shape[1])
        )
        return self.intervals.quantiles(predicted.forecast, width, series_ids, levels, fan)


def smeared(curve: Curve, forecast: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """The mean in raw units of what is expected in units of a transform: float32 [n, H].

    What comes back from a mean is no mean. So the forecast [n, H] is moved by each deviation that is as likely as the
    others, comes back with each, and the mean is taken then (Duan, *Smearing estimate*, JASA 1983, with the quantiles
    [n, H, Q] at `SMEARED_LEVELS` of the window itself for residuals). Without deviations it is the inverse alone.
    """
    moved = forecast[..., None] + (quantiles - quantiles.mean(axis=-1, keepdims=True))
    return np.asarray(curve.inverse(moved).mean(axis=-1), dtype=np.float32)


def memory_fan(found: Neighbours, condensed: Condensed | None, levels: tuple[float, ...], horizon: int) -> MemoryFan:
    """What a memory says by itself of all windows that it answered, moment after moment (n = B * N)."""
    assert condensed is not None, "an answer is condensed"
    quantiles = found.quantiles(levels, on_empty="last-value")[:, :, :horizon]
    by_space = np.where(condensed.found[..., None], condensed.forecasts, np.nan)[None]
    return MemoryFan(quantiles.reshape(len(by_space[0]), horizon, len(levels)), mean_over_spaces(by_space)[0])


def predict(model: ForecastModel, batch: Batch) -> Predicted:
    """Forecast all windows of a batch, a bounded number at a time."""
    outputs: list[ModelOutput] = [output_of(model, part) for part in parts_of(batch)]
    gatings = [output.gating.gate for output in outputs if output.gating is not None]
    directions = [output.trend.direction.argmax(dim=1) for output in outputs if output.trend is not None]
    bases = _joined([output.bases for output in outputs])
    return Predicted(
        forecast=_joined([output.forecast for output in outputs]),
        bases=bases,
        linear=bases[:, model.base_names.index("linear")] if model.shortcut else None,
        gate=_joined([output.gate for output in outputs]),
        feature_gate=_joined(gatings) if gatings else None,
        direction=_joined(directions) if directions else None,
        spread=_joined([output.spread for output in outputs]),
    )


def output_of(model: ForecastModel, part: Batch) -> ModelOutput:
    """What a model says of a few windows, with everything that it says about how that came about."""
    model.eval()
    moved = part.to(next(model.parameters()).device)
    with torch.inference_mode():
        output: ModelOutput = model(
            moved.context, moved.neighbours, unit=moved.unit, fold=moved.fold, beside=moved.beside
        )
    return output


def _joined(parts: list[Tensor]) -> np.ndarray:
    return torch.cat(parts).cpu().numpy()


def load_predictor(run: Run, *, device: str = "auto", llm: str | None = None, state: int | None = None) -> Predictor:
    """The trained model of a run. device: `auto`, `cpu` or `cuda`; it need not be the one that trained it. llm: where
    its language model lies now, None for where it was. state: None for the one that the run uses.

    Raises `NotFoundError` for a state that is not there, `RunNotFoundError` (not trained to its end),
    `RunDamagedError`, `BackboneNotFoundError` and `RunIncompatibleError` (the frozen language model is not on this
    machine, or is another one).
    """
    record, config = run.record, run.record.config if llm is None else run.record.config.changed(llm=llm)
    intervals = read_intervals(run.path)
    backbone = place_backbone(config, device)
    if backbone is not None:
        assert record.backbone is not None, "the record says which language model its settings name"
        check_reference(backbone, record.backbone, str(run.path))
    weights, _ = run.weights()
    num_networks = num_networks_in(set(weights))
    read = len(weights[SHORTCUT_WEIGHT]) if SHORTCUT_WEIGHT in weights else config.model.lookback
    model = ForecastModel(
        config.model,
        num_spaces=len(record.index.spaces),
        backbone=backbone,
        num_networks=num_networks,
        num_beside=read - config.model.lookback,
    )
    load_into(model, weights, where=run.path / WEIGHTS)
    used, seen_until = state_of(run, state), record.data.seen_until
    if used is not None and used.number > 0:
        take_state(model, read_arrays(run.path, used))
        seen_until = max(seen_until, np.datetime64(used.until, "ns"))
    return Predictor(
        config=config,
        model=model.to(resolve_device(device)).eval(),
        units=record.data.units,
        intervals=intervals,
        seen_until=seen_until,
        state=0 if used is None else used.number,
    )


def state_of(run: Run, number: int | None) -> StateRecord | None:
    """A state of a run; None for a run that cannot go on, and is as it was trained."""
    return None if number in (None, 0) and not has_states(run.path) else read_state(run.path, number)


def take_state(model: ForecastModel, arrays: Mapping[str, np.ndarray]) -> None:
    """Give a model the linear map and the gate of a state."""
    assert model.shortcut is not None, "a run that goes on has a linear map"
    model.shortcut.set_weights(arrays["weight"])
    with torch.no_grad():
        model.value_gate.logits.copy_(torch.from_numpy(arrays["logits"]))


def require_same_memory(run: Run, manifest: Manifest, ref: str, *, newer: bool) -> None:
    """Raise `RunIncompatibleError` unless a version is the one that a run was trained against, or, if `newer` is asked
    for, any version of the same windows and the same key encoder: what was appended, or built on again.
    """
    trained = run.record.index
    theirs = {
        **manifest.window.to_dict(),
        "key encoder": manifest.encoder["fingerprint"],
        "key spaces": ", ".join(str(record.space) for record in manifest.spaces),
    }
    ours = {
        **trained.window,
        "key encoder": trained.encoder_fingerprint,
        "key spaces": ", ".join(trained.spaces),
    }
    for name, value in ours.items():
        if theirs[name] != value:
            raise RunIncompatibleError(
                f"{run.path} was trained against {trained.ref}, but {ref} has another {name}: "
                f"{theirs[name]}, not {value}",
                hint=f"use {trained.ref}, or a version appended to it",
            )
    if manifest.fingerprint != trained.fingerprint and not newer:
        raise RunIncompatibleError(
            f"{run.path} was trained against {trained.ref}, but what is called {ref} now has another content",
            hint=f"restore that version, or say --index {ref} to use what is there",
        )
