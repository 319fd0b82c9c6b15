"""The value gate in closed form: no step of a gradient, no seed, seconds.

Its weights are the same for every window, so the mean squared error of its mix depends on the training windows through
one matrix per step of the horizon only,

    mean (sum_p w_p e_p)^2 = w^T G w,     G = mean e e^T,     e_p = error of part p,     sum_p w_p = 1

and so the windows are read once, fold by fold. The parts are named, and their errors are out of fold
(`retrieval/folds.py`): whatever else has such forecasts can be one more of them. What is minimised is that error,
relative to the prior mix's, plus a penalty on how far the logits are from the prior: half linear map, half memory. How
strong the penalty is, and whether it holds the last value too, is cross-validated over the folds, and so is whether the
mix is better than each of its parts by itself: one that beats it beyond doubt is kept in its place. Where training
windows had to ask with less of a memory than a forecast will have, their errors make the memory look worse than it is:
then the mix is kept, and held near its prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forecaster.model.model import NETWORK, ForecastModel
from forecaster.model.patching import instance_norm
from forecaster.retrieval.batches import CachedWindows, parts_of
from forecaster.training.network_verdict import NetworkVerdict, judge
from forecaster.training.quadratics import Quadratic, fit_logits, mean_error
from forecaster.training.weighing import weights_of

CHUNK = 2048  # windows read at once
NUM_STEPS = 96  # of the horizon that are looked at, at most: the weights are linear between their knots
CV_STEPS = 24  # likewise where settings are compared
LEAST_SHARE = 0.02  # of each plain forecast before anything is fitted
PENALTIES = (0.01, 0.1, 1.0)
MADE_DO = 0.3  # the penalty where the windows tell little of the memory (docs/experiments.md)
LAST_VALUE = "last_value"
LEADING = ("linear", NETWORK)  # bases that begin with as much as the memory
MIX, MEMORY = "mix", "memory"
LEAST_WHOLE = 0.05  # of the windows: from so many on that have every part, only those are looked at
OUT = -40.0  # a logit whose part has no say while another is there: exp(-40) is 4e-18


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What the windows say of the parts. names: of the P parts. steps: int64 [S], of the horizon. folds: of each fold
    (one where there are none) its windows by the parts that they have.
    """

    names: tuple[str, ...]
    steps: np.ndarray
    folds: tuple[tuple[Quadratic, ...], ...]

    def without(self, name: str) -> Evidence:
        """The same of all parts but one."""
        kept = [number for number, each in enumerate(self.names) if each != name]

        def fewer(quadratic: Quadratic) -> Quadratic:
            return Quadratic(quadratic.there[kept], quadratic.matrix[:, kept][:, :, kept], quadratic.num)

        folds = tuple(tuple(fewer(quadratic) for quadratic in fold) for fold in self.folds)
        return Evidence(names=tuple(self.names[number] for number in kept), steps=self.steps, folds=folds)

    @property
    def all(self) -> list[Quadratic]:
        """Of all folds."""
        return [each for fold in self.folds for each in fold]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSetting:
    """How the fit is held. penalty: of the squared distance of a logit from its prior. hold_last: the last value's
    too.
    """

    penalty: float
    hold_last: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class GateFit:
    """How the gate was chosen. kept: `mix`, or the part that it is. errors: cross-validated mean squared errors by
    name, standardised and weighed by series, empty where nothing could be held out. setting: of the mix, None where it
    was not fitted. shares: of each part in what was kept, a mean over the horizon. network: None without networks.
    """

    kept: str
    errors: dict[str, float]
    setting: GateSetting | None
    shares: dict[str, float]
    network: NetworkVerdict | None = None

    def to_dict(self) -> dict[str, Any]:
        """In terms of JSON."""
        return asdict(self)


def fit_value_gate(
    model: ForecastModel, training: CachedWindows, penalty: float | None = None, *, made_do: bool = False
) -> tuple[GateFit, Evidence]:
    """Fit the gate of a model whose shortcut is fitted, and hold it fixed. Also returns what told it.

    penalty: see `GateSetting`; None chooses it. made_do: see `choose_gate`.
    """
    gate, config = model.value_gate, training.config
    mixed = training.condensed is not None and config.mixes_memory
    spaces = [str(space) for space in training.spaces] if mixed else []
    evidence = gather_evidence(model, training, (*model.base_names, *spaces))
    bases, hats = len(model.base_names), gate.hats.double()
    logits, found = choose_gate(evidence, bases, hats, config.horizon, penalty, made_do=made_do)
    with torch.no_grad():
        gate.logits.copy_(logits)
    return found, evidence


def choose_gate(
    evidence: Evidence,
    num_bases: int,
    hats: Tensor,
    horizon: int,
    penalty: float | None = None,
    *,
    made_do: bool = False,
) -> tuple[Tensor, GateFit]:
    """Logits [P, knots], float64, and how they were chosen.

    hats: float64 [knots, H]. Where nothing is held out the gate stays at its prior, unless a penalty is given: parts
    that were fitted on the windows that judge them look better than they are. The networks are left out unless the
    mix with them is clearly better on held-out windows (`network_verdict.py`). made_do: whether training windows asked
    with less of a memory than a forecast will have.
    """
    logits, found, errors = _choose(evidence, num_bases, hats, horizon, penalty, made_do=made_do)
    if NETWORK not in evidence.names or len(evidence.names) == 1 or not len(errors):
        return logits, found
    number, rest = evidence.names.index(NETWORK), evidence.without(NETWORK)
    without = _choose(rest, num_bases - 1, hats, horizon, penalty, made_do=made_do)
    verdict = judge(errors, without[2], _fold_sizes(evidence), alone=found.errors[NETWORK], share=found.shares[NETWORK])
    if verdict.kept:
        return logits, replace(found, network=verdict)
    logits = torch.cat([without[0][:number], torch.full_like(logits[:1], 2 * OUT), without[0][number:]])
    shares = {name: without[1].shares.get(name, 0.0) for name in evidence.names}
    return logits, replace(without[1], shares=shares, network=verdict)


def _choose(
    evidence: Evidence, num_bases: int, hats: Tensor, horizon: int, penalty: float | None, *, made_do: bool
) -> tuple[Tensor, GateFit, np.ndarray]:
    """As `choose_gate`, of the parts that there are: the networks, where they are among them, in the mix or alone.
    Also the held-out error of what is kept on each fold [folds].
    """
    prior, at = prior_shares(evidence.names, num_bases), hats[:, evidence.steps]
    if len(evidence.folds) < 2 and penalty is None:
        logits = prior.log()[:, None].expand(-1, len(hats)).clone()
        return logits, _told(MIX, {}, None, logits @ hats, evidence.names), np.zeros(0)
    tried = (penalty,) if penalty is not None else (MADE_DO,) if made_do else PENALTIES
    settings = [GateSetting(penalty=each, hold_last=hold) for hold in (made_do, True) for each in tried]
    setting, kept, means, errors = settings[0], MIX, dict[str, float](), {MIX: np.zeros(0)}
    if len(evidence.folds) > 1:
        groups = part_groups(evidence.names, num_bases)
        if NETWORK in groups:  # whether any other part is better alone is asked of all parts without it
            groups = {NETWORK: groups[NETWORK]}
        num = _fold_sizes(evidence)
        mixes = {each: held_out_errors(evidence, prior, at, each) for each in settings}
        setting = min(mixes, key=lambda each: float(mixes[each] @ num))
        errors = {MIX: mixes[setting]} | {name: group_errors(evidence, group) for name, group in groups.items()}
        kept = MIX if made_do else best_of(errors, num)
        means = {name: float(each @ num / num.sum()) for name, each in errors.items()}
        if kept != MIX:
            logits = _alone(groups[kept], len(prior), len(hats), evidence.names)
            return logits, _told(kept, means, setting, logits @ hats, evidence.names), errors[kept]
    logits = fit_logits(evidence.all, prior, held_by(setting, evidence.names), at)
    return logits, _told(MIX, means, setting, logits @ hats, evidence.names), errors[MIX]


def _fold_sizes(evidence: Evidence) -> np.ndarray:
    """Windows of each fold, float64 [folds]."""
    return np.array([sum(quadratic.num for quadratic in fold) for fold in evidence.folds], dtype=float)


def best_of(errors: Mapping[str, np.ndarray], num: np.ndarray) -> str:
    """`mix`, unless the best part by itself is better by more than the standard error of the difference over folds.

    errors: mean squared errors by fold. num: windows of each fold.
    """
    weight = num / num.sum()
    best = min((name for name in errors if name != MIX), key=lambda name: float(errors[name] @ weight), default=MIX)
    gain = errors[MIX] - errors[best]
    mean = float(gain @ weight)
    deviation = float(np.sqrt(np.square(gain - mean) @ weight / max(1, len(num) - 1)))
    return best if mean > deviation else MIX


def horizon_steps(horizon: int, most: int = NUM_STEPS) -> np.ndarray:
    """Steps of the horizon that are looked at, int64, spread evenly."""
    return np.unique(np.linspace(0, horizon - 1, most).round().astype(np.int64))


def prior_shares(names: Sequence[str], num_bases: int) -> Tensor:
    """What each part has before anything is fitted, float64 [P]; softmax makes them sum to 1.

    The linear map, the key spaces together and the networks have the same, and each plain forecast begins with
    `LEAST_SHARE`.
    """
    num_spaces = len(names) - num_bases
    return torch.tensor(
        [
            0.5 / max(1, num_spaces) if number >= num_bases else 0.5 if name in LEADING else LEAST_SHARE
            for number, name in enumerate(names)
        ],
        dtype=torch.float64,
    )


def part_groups(names: Sequence[str], num_bases: int) -> dict[str, list[int]]:
    """What the mix is compared with: numbers of the parts whose mean it is. Bases, each scope, and the whole memory."""
    groups = {name: [number] for number, name in enumerate(names[:num_bases])}
    spaces = list(range(num_bases, len(names)))
    for number in spaces:
        groups.setdefault(names[number].split("-")[0], []).append(number)
    return groups | ({MEMORY: spaces} if spaces else {})


def held_by(setting: GateSetting, names: Sequence[str]) -> Tensor:
    """The penalty of each part, float64 [P]. The networks' is 0: held, they keep a weight that they have not earned
    (docs/experiments.md).
    """
    free = [name == NETWORK or (name == LAST_VALUE and not setting.hold_last) for name in names]
    return torch.where(torch.tensor(free), 0.0, setting.penalty).double()


def held_out_errors(evidence: Evidence, prior: Tensor, hats: Tensor, setting: GateSetting) -> np.ndarray:
    """The mean squared error on each fold of a gate that was fitted on the others, float64 [folds]."""
    some = np.unique(np.linspace(0, len(evidence.steps) - 1, CV_STEPS).round().astype(np.int64))
    folds = [[each.at(some) for each in fold] for fold in evidence.folds]
    hats, held = hats[:, some], held_by(setting, evidence.names)
    errors = []
    for number, mine in enumerate(folds):
        others = [each for other, fold in enumerate(folds) if other != number for each in fold]
        errors.append(mean_error(mine, fit_logits(others, prior, held, hats) @ hats))
    return np.array(errors)


def group_errors(evidence: Evidence, group: Sequence[int]) -> np.ndarray:
    """The mean squared error on each fold of the mean of some parts, float64 [folds]."""
    logits = torch.full((len(evidence.names), len(evidence.steps)), OUT, dtype=torch.float64)
    logits[list(group)] = 0.0
    return np.array([mean_error(fold, logits) for fold in evidence.folds])


def _alone(group: Sequence[int], num_parts: int, num_knots: int, names: Sequence[str]) -> Tensor:
    """Logits of the mean of some parts; a window that has none of them gets the linear map, or what else there is."""
    logits = torch.full((num_parts, num_knots), 2 * OUT, dtype=torch.float64)
    if "linear" in names:
        logits[list(names).index("linear")] = OUT
    logits[list(group)] = 0.0
    return logits


def _told(
    kept: str, errors: dict[str, float], setting: GateSetting | None, logits: Tensor, names: Sequence[str]
) -> GateFit:
    """logits: float64 [P, H]."""
    shares = torch.softmax(logits, dim=0).mean(dim=1).tolist()
    return GateFit(kept=kept, errors=errors, setting=setting, shares=dict(zip(names, shares, strict=True)))


def add_errors(errors: Tensor, there: Tensor, sums: dict[bytes, Quadratic], weight: np.ndarray | None = None) -> None:
    """Add windows to the sums of those that have the same parts.

    errors: float32 [n, P, S], 0 for a part that is not there. there: bool [n, P]. weight: [n], how many windows each
    counts for, default one.
    """
    if weight is not None:
        errors = errors * torch.from_numpy(np.sqrt(weight)).to(errors)[:, None, None]
    kinds, kind = torch.unique(there, dim=0, return_inverse=True)
    for number, each in enumerate(kinds):
        chosen = errors[kind == number].permute(2, 1, 0)  # [S, P, n]
        matrix = torch.matmul(chosen, chosen.transpose(1, 2)).double()
        key = each.numpy().tobytes()
        before = sums.get(key, Quadratic(each, torch.zeros_like(matrix), 0))
        num = float(chosen.shape[2]) if weight is None else float(weight[(kind == number).numpy()].sum())
        sums[key] = Quadratic(each, before.matrix + matrix, before.num + num)


@torch.no_grad()
def gather_evidence(model: ForecastModel, training: CachedWindows, names: tuple[str, ...]) -> Evidence:
    """The errors of the parts over all training windows, standardised and weighed by series, fold by fold.

    Where enough windows have every part, the others are left out: what they lack would be judged on other windows than
    what they have.
    """
    steps, weight = horizon_steps(training.config.horizon), weights_of(training)
    there = parts_there(training, len(model.base_names), mixes_memory=bool(model.num_mixed))
    whole = there.all(dim=1)
    used = whole if float(whole.double().mean()) >= LEAST_WHOLE else torch.ones_like(whole)
    fold = np.zeros(len(training), dtype=np.int64) if training.fold is None else training.fold
    folds = []
    for number in np.unique(fold):
        sums: dict[bytes, Quadratic] = {}
        rows = np.flatnonzero((fold == number) & used.numpy())
        for first in range(0, len(rows), CHUNK):
            chosen = rows[first : first + CHUNK]
            errors = part_errors(model, training, chosen, steps, there[chosen])
            counted = torch.from_numpy(np.sqrt(weight[chosen])).to(errors)
            add_errors(errors * counted[:, None, None], there[chosen], sums)  # a mean of scores is over windows
        if sums:
            folds.append(tuple(sums.values()))
    return Evidence(names=names, steps=steps, folds=tuple(folds))


def parts_there(training: CachedWindows, num_bases: int, *, mixes_memory: bool = True) -> Tensor:
    """Which parts each window has, bool [n, P]."""
    there = torch.ones(len(training), num_bases, dtype=torch.bool)
    if training.condensed is None or not mixes_memory:
        return there
    return torch.cat([there, torch.from_numpy(np.array(training.condensed.found))], dim=1)


def part_errors(
    model: ForecastModel, training: CachedWindows, chosen: np.ndarray, steps: np.ndarray, there: Tensor
) -> Tensor:
    """Errors of the parts of some windows, float32 [n, P, S], standardised; 0 for a part that is not there,
    and at a step that is missing, which counts for nothing.
    """
    unit, context = torch.from_numpy(training.unit[chosen]), torch.from_numpy(training.contexts(chosen))
    fold = None if training.fold is None else torch.from_numpy(training.fold[chosen])
    memory = network = None
    if training.condensed is not None and model.num_mixed:
        memory = torch.from_numpy(np.asarray(training.condensed.forecasts[chosen]))
    if len(model.networks):
        network = network_forecasts(model, training, chosen)
    parts = part_forecasts(model, context, unit, memory, steps, fold, network=network)
    return errors_of_parts(parts, torch.from_numpy(training.futures(chosen)[:, steps]), unit, there)


def part_forecasts(
    model: ForecastModel,
    context: Tensor,
    unit: Tensor,
    memory: Tensor | None,
    steps: np.ndarray,
    fold: Tensor | None = None,
    *,
    network: Tensor | None = None,
) -> Tensor:
    """What each part says by itself, [n, P, S], in units of the contexts [n, L].

    unit: [n]. memory: forecasts of the key spaces, [n, V, H], None without a memory. network: of the networks,
    [n, H], None without any. fold: see `Batch.fold`.
    """
    location, spread = instance_norm(context, unit, model.config.spread_floor)
    parts = model.bases((context - location[:, None]) / spread[:, None], fold)[:, :, steps]
    parts = parts * spread[:, None, None] + location[:, None, None]
    others = [] if network is None else [network[:, None, steps]]
    others += [] if memory is None else [memory[..., steps]]
    return torch.cat([parts, *others], dim=1)


def errors_of_parts(parts: Tensor, future: Tensor, unit: Tensor, there: Tensor) -> Tensor:
    """Standardised errors [n, P, S] of what parts say; 0 for one that is not there, and at a missing step.

    future: [n, S]. unit: [n]. there: bool [n, P].
    """
    errors = (parts - future[:, None]) / unit[:, None, None]
    return torch.where(there[..., None] & ~future.isnan()[:, None], errors, 0.0)


def network_forecasts(model: ForecastModel, training: CachedWindows, chosen: np.ndarray) -> Tensor:
    """What the networks forecast of some training windows, each by the one that has not seen it: [n, H], raw units."""
    model.eval()
    device = next(model.networks.parameters()).device
    found = []
    for part in parts_of(training.batch(chosen)):
        moved = part.to(device)
        output = model(moved.context, moved.neighbours, unit=moved.unit, fold=moved.fold)
        found.append(output.networks.mean(dim=1).cpu())
    return torch.cat(found)
