"""One peer on one data set and horizon: trained, tuned on the validation part, asked for every test window.

It runs in the environment of the peers (`make peers`) and imports nothing of this project. What it is asked comes as a
JSON file, and what it found lies beside it, so that the caller scores every arm with the same code:

    .venv-peers/bin/python benchmarks/accuracy/peer_worker.py JOB.json

The models are neuralforecast's own modules; the loop is a plain one (Adam, MSE, batches of 32 moments with all their
series, stopped by the validation part), because the library's loader copies every window at every step, which took
most of the time here. Values come standardised. Each learning rate of the list is trained for the same share of
`budget_s`; the weights of the best validation of them all forecast. `learning_rate` in the job skips the choice.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from neuralforecast.models import DLinear, NLinear, PatchTST, TimeMixer, iTransformer
from torch import Tensor, nn

LEARNING_RATES = (1e-3, 1e-4)
MOMENTS = 32  # of a batch, each with all its series
PATIENCE = 3  # epochs without a better validation MSE
MAX_EPOCHS = 100

# Sizes are those that the papers' own scripts use for the hourly ETT sets; all else is as the library has it.
PEERS: dict[str, tuple[type, dict[str, Any]]] = {
    "DLinear": (DLinear, {}),
    "NLinear": (NLinear, {}),
    "PatchTST": (PatchTST, {"hidden_size": 16, "n_heads": 4, "linear_hidden_size": 128, "dropout": 0.3}),
    "iTransformer": (iTransformer, {"hidden_size": 256, "d_ff": 256}),
    "TimeMixer": (TimeMixer, {"d_model": 16, "d_ff": 32, "e_layers": 2, "down_sampling_layers": 3}),
}
TOGETHER = ("iTransformer", "TimeMixer")  # read all series of a moment at once


def main(path: Path) -> None:
    """Read the job, choose the learning rate, write `PATH.npy` [moments, N, H] and `PATH.told`."""
    job = json.loads(path.read_text())
    torch.set_num_threads(job["threads"])
    values = torch.from_numpy(np.load(job["values"]))  # float32 [T, N]
    lookback, horizon = job["lookback"], job["horizon"]
    windows = values.unfold(0, lookback + horizon, 1)  # [T - L - H + 1, N, L + H], row r has its origin at r + L - 1
    train_end, val_end, test_end = job["ends"]
    training = torch.arange(0, train_end - lookback - horizon + 1)
    validation = torch.arange(train_end - lookback, val_end - lookback - horizon + 1)
    test = torch.arange(val_end - lookback, test_end - lookback - horizon + 1)
    rates = (job["learning_rate"],) if "learning_rate" in job else LEARNING_RATES
    began, tried = time.monotonic(), {}
    for rate in rates:
        model = made(job, num_series=values.shape[1])
        tried[rate] = (*trained(model, windows, training, validation, job, rate, job["budget_s"] / len(rates)), model)
    rate = min(tried, key=lambda each: tried[each][0])
    best, epochs, model = tried[rate]
    told = {
        "learning_rate": rate,
        "val_mse": best,
        "tried": {str(each): found[0] for each, found in tried.items()},
        "epochs": epochs,
        "seconds": time.monotonic() - began,
        "parameters": sum(each.numel() for each in model.parameters()),
    }
    np.save(path.with_suffix(".npy"), forecasts(model, windows, test, job).numpy())
    path.with_suffix(".told").write_text(json.dumps(told, indent=1) + "\n")


def made(job: dict[str, Any], *, num_series: int) -> nn.Module:
    """The untrained peer."""
    kind, sizes = PEERS[job["peer"]]
    together = {"n_series": num_series} if job["peer"] in TOGETHER else {}
    model: nn.Module = kind(h=job["horizon"], input_size=job["lookback"], random_seed=job["seed"], **sizes, **together)
    return model


def trained(
    model: nn.Module,
    windows: Tensor,
    training: Tensor,
    validation: Tensor,
    job: dict[str, Any],
    rate: float,
    seconds: float,
) -> tuple[float, int]:
    """Train within so many seconds; the model then has its best weights. Best validation MSE, and epochs begun."""
    generator = torch.Generator().manual_seed(job["seed"])
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    until, best, kept, since, epoch = time.monotonic() + seconds, float("inf"), model.state_dict(), 0, 0
    while epoch < MAX_EPOCHS and since < PATIENCE and time.monotonic() < until:
        epoch += 1
        model.train()
        for rows in training[torch.randperm(len(training), generator=generator)].split(MOMENTS):
            optimizer.zero_grad()
            batch = windows[rows]
            ((forecast(model, batch, job) - batch[..., job["lookback"] :]) ** 2).mean().backward()
            optimizer.step()
            if time.monotonic() > until:
                break
        errors = [
            ((forecasts(model, windows, rows, job) - windows[rows][..., job["lookback"] :]) ** 2).mean((1, 2))
            for rows in validation.split(8 * MOMENTS)
        ]
        mse, since = float(torch.cat(errors).mean()), since + 1
        if mse < best:
            best, kept, since = mse, {name: each.clone() for name, each in model.state_dict().items()}, 0
    model.load_state_dict(kept)
    return best, epoch


def forecast(model: nn.Module, batch: Tensor, job: dict[str, Any]) -> Tensor:
    """[moments, N, L + H], of which the future is not shown -> [moments, N, H]."""
    context = batch[..., : job["lookback"]]  # [moments, N, L]
    if job["peer"] in TOGETHER:
        shown = {"insample_y": context.transpose(1, 2), "futr_exog": None}
        return model(shown).transpose(1, 2)
    return model({"insample_y": context.reshape(-1, job["lookback"], 1)}).reshape(*context.shape[:2], -1)


@torch.no_grad()
def forecasts(model: nn.Module, windows: Tensor, rows: Tensor, job: dict[str, Any]) -> Tensor:
    """Of all windows of these rows: float32 [rows, N, H]."""
    model.eval()
    return torch.cat([forecast(model, windows[part], job) for part in rows.split(8 * MOMENTS)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
