"""The text that goes before the patches: what the data are, the task, and what the window looks like.

Nothing is tokenised in a training step. The text that is the same for all windows is tokenised once. A statistic can
only take a few hundred values, so the tokens of each are a row of a table made at the start, and a batch of prompts
is a few table look-ups. All rows of a table have the same length (commas fill it up on the left), so all prompts of a
run have the same length too: no padding, no mask. Every token costs, so labels are in the static part and numbers
have one decimal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

NUM_LAGS = 5
LARGEST = 99  # tenths; standardised values beyond 9.9 are said as 9.9
TRENDS = ("down", "flat", "up")
FILLER = ","


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """description: of the data, in words."""

    description: str = ""


class PromptStatistics(NamedTuple):
    """What a prompt says of B windows. All int64.

    low, high, middle: [B], minimum, maximum and (lower) median, in tenths of the window's spread, from -99 to 99.
    trend: [B], 0 down, 1 flat, 2 up. lags: [B, 5], the lags of the largest autocorrelation, largest first, in steps.
    """

    low: Tensor
    high: Tensor
    middle: Tensor
    trend: Tensor
    lags: Tensor


def prompt_statistics(z: Tensor) -> PromptStatistics:
    """Statistics of standardised windows z [B, L]. The trend is that of last minus first value, flat below 0.05."""
    z = z.detach()
    change = _tenths(z[:, -1] - z[:, 0])
    return PromptStatistics(
        low=_tenths(z.amin(dim=1)),
        high=_tenths(z.amax(dim=1)),
        middle=_tenths(z.median(dim=1).values),
        trend=change.sign() + 1,
        lags=top_lags(z, num_lags(z.shape[1])),
    )


def top_lags(z: Tensor, num: int) -> Tensor:
    """The `num` lags from 1 to L//2 with the largest autocorrelation, int64 [B, num]; the shorter lag wins a tie.

    `r(lag) = sum_t z(t) z(t + lag)`, by FFT of the window padded to 2L (Wiener-Khinchin), so nothing wraps around. In
    float64: which lag wins must not depend on how many windows are asked at once.
    """
    lookback = z.shape[1]
    spectrum = torch.fft.rfft(z.double(), n=2 * lookback)
    correlation = torch.fft.irfft(spectrum.abs().square(), n=2 * lookback)[:, 1 : lookback // 2 + 1]
    order = correlation.sort(dim=1, descending=True, stable=True).indices
    return order[:, :num] + 1


def num_lags(lookback: int) -> int:
    """How many lags a prompt names: 5, or all that there are in a short window."""
    return min(NUM_LAGS, lookback // 2)


def static_text(description: str, lookback: int, horizon: int) -> str:
    """The part of the prompt that all windows share. It ends with the labels of the numbers that follow."""
    about = f"Data: {description.strip().rstrip('.')}. " if description.strip() else ""
    return (
        f"{about}Task: forecast the next {horizon} steps given the last {lookback}. "
        "Input min, max, median, trend, top lags:"
    )


def statistic_texts(lookback: int) -> tuple[list[str], list[str], list[str]]:
    """Every text that a value, a trend and a lag can have, in the order of their table rows."""
    values = [f" {tenths / 10:.1f}" for tenths in range(-LARGEST, LARGEST + 1)]
    return values, [f" {word}" for word in TRENDS], [f" {lag}" for lag in range(1, lookback // 2 + 1)]


class Prompt(nn.Module):
    """Token ids of prompts: `static_ids` [T_static] and, of a batch, `forward(z [B, L]) -> [B, T_dynamic]`.

    The text is `static_text`, then low, high, median, trend and lags, each by its table. It holds no weights; tables
    move with the module and are no part of its state.
    """

    static_ids: Tensor
    value_ids: Tensor
    trend_ids: Tensor
    lag_ids: Tensor

    def __init__(self, encode: Callable[[str], list[int]], *, description: str, lookback: int, horizon: int) -> None:
        super().__init__()
        static = torch.tensor(encode(static_text(description, lookback, horizon)))
        filler = encode(FILLER)[0]
        values, trends, lags = (token_table(encode, texts, filler) for texts in statistic_texts(lookback))
        self.register_buffer("static_ids", static, persistent=False)
        self.register_buffer("value_ids", values, persistent=False)  # [199, width]
        self.register_buffer("trend_ids", trends, persistent=False)  # [3, width]
        self.register_buffer("lag_ids", lags, persistent=False)  # [L//2, width]
        self.num_static = len(static)
        self.num_dynamic = 3 * values.shape[1] + trends.shape[1] + num_lags(lookback) * lags.shape[1]

    def forward(self, z: Tensor) -> Tensor:
        """Token ids of the statistics of z [B, L], int64 [B, T_dynamic]."""
        statistics = prompt_statistics(z)
        numbers = torch.stack([statistics.low, statistics.high, statistics.middle], dim=1) + LARGEST
        return torch.cat(
            [
                self.value_ids[numbers].flatten(1),
                self.trend_ids[statistics.trend],
                self.lag_ids[statistics.lags - 1].flatten(1),
            ],
            dim=1,
        )


def token_table(encode: Callable[[str], list[int]], texts: Sequence[str], filler: int) -> Tensor:
    """Token ids of each text, int64 [len(texts), longest], shorter ones filled up on the left."""
    rows = [encode(text) for text in texts]
    width = max(len(row) for row in rows)
    return torch.tensor([[filler] * (width - len(row)) + row for row in rows]).view(len(texts), width)


def _tenths(value: Tensor) -> Tensor:
    return (value.nan_to_num() * 10).round().clamp(-LARGEST, LARGEST).long()
