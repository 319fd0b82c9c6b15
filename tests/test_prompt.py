"""Prompts: the fast way of making them against the plain one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forecaster.language_models.backbone import TINY
from forecaster.language_models.loading import load_backbone
from forecaster.model.prompt import Prompt, prompt_statistics, static_text, token_table, top_lags


def windows(num: int, lookback: int) -> torch.Tensor:
    """Standardised windows of several kinds, float32 [num, lookback]."""
    generator = torch.Generator().manual_seed(3)
    steps = torch.arange(lookback)
    noise = torch.randn(num, lookback, generator=generator)
    period = torch.randint(3, 30, (num, 1), generator=generator)
    kinds = torch.stack([noise, noise.cumsum(dim=1), torch.sin(2 * torch.pi * steps / period) + 0.1 * noise])
    z = kinds[torch.arange(num) % 3, torch.arange(num)]
    return (z - z.mean(dim=1, keepdim=True)) / z.std(dim=1, keepdim=True)


def plain_lags(window: np.ndarray, num: int) -> list[int]:
    """The lags of the largest autocorrelation, by the definition."""
    values = window.astype(np.float64)
    r = {lag: float(np.dot(values[:-lag], values[lag:])) for lag in range(1, len(values) // 2 + 1)}
    return sorted(r, key=lambda lag: (-round(r[lag], 9), lag))[:num]


def plain_ids(encode, window: np.ndarray, widths: dict[str, int]) -> list[int]:
    """What a loop that tokenises one number at a time would write for one window."""

    def filled(text: str, width: int) -> list[int]:
        ids = encode(text)
        return encode(",") * (width - len(ids)) + ids

    def value(number: float) -> list[int]:
        tenths = int(np.clip(np.round(np.float32(number) * np.float32(10)), -99, 99))
        return filled(f" {tenths / 10:.1f}", widths["value"])

    change = int(np.round((window[-1] - window[0]) * np.float32(10)))
    middle = np.sort(window)[(len(window) - 1) // 2]
    ids = value(window.min()) + value(window.max()) + value(middle)
    ids += filled(" up" if change > 0 else " down" if change < 0 else " flat", widths["trend"])
    for lag in plain_lags(window, 5):
        ids += filled(f" {lag}", widths["lag"])
    return ids


@pytest.mark.parametrize("lookback", [16, 96, 511])
def test_table_look_up_writes_what_a_loop_would(lookback: int) -> None:
    encode = load_backbone(TINY).encode
    prompt = Prompt(encode, description="", lookback=lookback, horizon=24)
    z = windows(30, lookback)
    z[1] = 0  # a flat window: every statistic is zero, every lag ties
    widths = {name: getattr(prompt, f"{name}_ids").shape[1] for name in ("value", "trend", "lag")}
    expected = [plain_ids(encode, window, widths) for window in z.numpy()]
    ids = prompt(z)
    assert ids.tolist() == expected
    assert ids.shape == (30, prompt.num_dynamic)
    assert len({tuple(row) for row in expected}) > 20
    # What a window says does not depend on which others are asked at once.
    assert torch.equal(torch.cat([prompt(window[None]) for window in z]), ids)


def test_lags_are_of_the_direct_autocorrelation() -> None:
    z = windows(30, 200)
    assert top_lags(z, 5).tolist() == [plain_lags(window, 5) for window in z.numpy()]
    sine = torch.sin(2 * torch.pi * torch.arange(240) / 24)[None]
    assert top_lags(sine, 1).item() in (1, 24)
    spikes = torch.zeros(1, 240)
    spikes[0, ::24] = 1
    assert top_lags(spikes, 5).tolist() == [[24, 48, 72, 96, 120]]


def test_statistics_stay_within_the_tables() -> None:
    wild = torch.tensor([[0.0, 1e9, -1e9, 0.0, float("nan"), float("inf")]])
    statistics = prompt_statistics(wild)
    for value in statistics[:3]:
        assert -99 <= value.item() <= 99
    encode = load_backbone(TINY).encode
    short = Prompt(encode, description="", lookback=6, horizon=1)
    assert short(wild).shape == (1, short.num_dynamic)
    rising = prompt_statistics(torch.tensor([[-1.0, 0.0, 1.26], [1.0, 0.0, -1.0], [0.0, 1.0, 0.04]]))
    assert rising.trend.tolist() == [2, 0, 1]
    assert rising.high.tolist() == [13, 10, 10]


def test_static_text_is_tokenised_once() -> None:
    calls = []
    tiny = load_backbone(TINY)

    def encode(text: str) -> list[int]:
        calls.append(text)
        return tiny.encode(text)

    prompt = Prompt(encode, description="Oil temperature, hourly.", lookback=96, horizon=24)
    num_calls = len(calls)
    prompt(windows(50, 96))
    assert len(calls) == num_calls
    text = tiny.tokenizer.decode(prompt.static_ids.tolist())
    assert text == static_text("Oil temperature, hourly.", 96, 24)
    assert text.startswith("Data: Oil temperature, hourly. Task: forecast the next 24 steps given the last 96.")
    assert not prompt.state_dict()


def test_table_rows_are_filled_up_on_the_left() -> None:
    assert token_table(lambda text: [ord(letter) for letter in text], ["7", "12"], 44).tolist() == [[44, 55], [49, 50]]
