"""The random number generators of a process: seeded, written down as JSON, put back.

Python's, NumPy's legacy one, torch's and that of the CUDA device. Dropout draws from torch's global generators, so
training has to use them; `preserved` leaves them to the caller as they were.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int, process: int) -> None:
    """Start all generators from a seed; each process gets streams of its own."""
    words = [int(word) for word in np.random.SeedSequence([seed, process]).generate_state(3)]
    random.seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002 - the global generator is what others draw from
    torch.manual_seed(words[2])


def capture(device: torch.device) -> dict[str, Any]:
    """The state of all generators, in terms of JSON; `cuda` only where the device is one."""
    version, internal, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(numpy_state, dict)
    words = numpy_state["state"]["key"]
    state = {
        "python": [version, list(internal), gauss],
        "numpy": {
            "kind": numpy_state["bit_generator"],
            "key": base64.b64encode(words.astype("<u4").tobytes()).decode(),
            "position": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": _encode(torch.get_rng_state()),
    }
    if device.type == "cuda":
        state["cuda"] = _encode(torch.cuda.get_rng_state(device))
    return state


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Put all generators back to where `capture` found them.

    A state that was captured on another kind of device says nothing of the generator of this one, which is left alone.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = state["numpy"]
    words = np.frombuffer(base64.b64decode(numpy_state["key"]), dtype="<u4").astype(np.uint32)
    np.random.set_state(  # noqa: NPY002
        (numpy_state["kind"], words, numpy_state["position"], numpy_state["has_gauss"], numpy_state["gauss"])
    )
    torch.set_rng_state(_decode(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_decode(state["cuda"]), device)


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Leave all generators, after the block, as they were before it."""
    before = capture(device)
    try:
        yield
    finally:
        restore(before, device)


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
