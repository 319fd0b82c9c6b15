"""Whether the networks are a part of the forecast: decided on held-out windows, told with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkVerdict:
    """Whether the networks are a part of the forecast, and why.

    with_network: held-out error of the mix with them, or of them alone where that is better; without: of what is kept
    of all other parts; alone: of the networks by themselves. gain: `1 - with_network / without`; doubt: its standard
    error over folds. They are kept where the gain is larger than the doubt.
    """

    kept: bool
    alone: float
    with_network: float
    without: float
    gain: float
    doubt: float


def judge(with_network: np.ndarray, without: np.ndarray, num: np.ndarray, *, alone: float) -> NetworkVerdict:
    """Compare held-out errors by fold, float64 [folds]. num: windows of each fold."""
    weight = num / num.sum()
    before, gain = float(without @ weight), float((without - with_network) @ weight)
    deviation = np.square(without - with_network - gain) @ weight / max(1, len(weight) - 1)
    doubt = float(np.sqrt(deviation))
    return NetworkVerdict(
        kept=gain > doubt,
        alone=alone,
        with_network=float(with_network @ weight),
        without=before,
        gain=gain / before if before else 0.0,
        doubt=doubt / before if before else 0.0,
    )
