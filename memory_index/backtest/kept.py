"""The forecasts of a backtest as they are made, in a folder, so that one that was killed goes on from them.

    part-00000.safetensors    the forecasts of one stretch of origins
    state-00001.safetensors   what forecasts and intervals had learned after so many parts
    progress.json             what the backtest is of, and the hashes of the files that count

A part counts from when `progress.json` names it: whatever else lies there is from a kill in between.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from memory_index import files
from memory_index.errors import IncompatibleError, VerificationError

PROGRESS = "progress.json"


class Piece(NamedTuple):
    """Forecasts of one block of windows, raw units.

    series: int64 [N]. row: int64 [B, N], origin rows. wanted: bool [B, N]. forecasts: by arm, float32 [B, N, H].
    quantiles: float32 [B, N, H, Q]. num_without: windows without a neighbour.
    """

    series: np.ndarray
    row: np.ndarray
    wanted: np.ndarray
    forecasts: dict[str, np.ndarray]
    quantiles: np.ndarray
    num_without: int


class KeptForecasts:
    """The folder. identity: what the forecasts depend on, in terms of JSON.

    Raises `IncompatibleError` if it holds the forecasts of something else, `VerificationError` for a damaged file.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, dict(identity)
        self.parts: list[str] = []  # sha256 of each
        self.state_hash = ""
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / PROGRESS).is_file():
            self._read()

    def __len__(self) -> int:
        return len(self.parts)

    def add(self, pieces: Sequence[Piece], state: Mapping[str, np.ndarray]) -> None:
        """Keep one part, and what was learned by its end. Raises `OSError`."""
        number, arrays = len(self.parts), dict[str, np.ndarray]()
        for place, piece in enumerate(pieces):
            own = {name: getattr(piece, name) for name in ("series", "row", "wanted", "quantiles")}
            own |= {"num_without": np.array(piece.num_without)}
            own |= {f"arm {name}": values for name, values in piece.forecasts.items()}
            arrays |= {f"{place} {name}": np.ascontiguousarray(values) for name, values in own.items()}
        part, after = safetensors.numpy.save(arrays), safetensors.numpy.save(dict(state))
        files.replace(self._part(number), part)
        files.replace(self._state(number + 1), after)
        self.parts, self.state_hash = [*self.parts, files.sha256_of(part)], files.sha256_of(after)
        record = {"identity": self.identity, "parts": self.parts, "state": self.state_hash}
        files.replace(self.folder / PROGRESS, json.dumps(record).encode())
        self._state(number).unlink(missing_ok=True)

    def state(self) -> dict[str, np.ndarray]:
        """What was learned by the end of the last part; empty before the first."""
        return self._load(self._state(len(self.parts)), self.state_hash) if self.parts else {}

    def pieces(self) -> Iterator[Piece]:
        """All that is kept, in the order in which it was made, one part in memory at a time."""
        for number, sha256 in enumerate(self.parts):
            arrays = self._load(self._part(number), sha256)
            by_piece: dict[int, dict[str, np.ndarray]] = {}
            for key, values in arrays.items():
                place, _, name = key.partition(" ")
                by_piece.setdefault(int(place), {})[name] = values
            for _, own in sorted(by_piece.items()):
                arms = {name.removeprefix("arm "): own.pop(name) for name in sorted(own) if name.startswith("arm ")}
                yield Piece(**{**own, "num_without": own["num_without"].item()}, forecasts=arms)

    def _read(self) -> None:
        try:
            record = json.loads((self.folder / PROGRESS).read_text())
            theirs, self.parts, self.state_hash = record["identity"], record["parts"], record["state"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(self.folder / PROGRESS) from error
        ours = json.loads(json.dumps(self.identity))
        if other := next((name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)), None):
            raise IncompatibleError(
                f"{self.folder} holds the beginning of another backtest, with another {other}",
                hint="run that one to its end, choose another --out, or delete the folder",
            )

    def _load(self, path: Path, sha256: str) -> dict[str, np.ndarray]:
        content = path.read_bytes() if path.is_file() else b""
        if files.sha256_of(content) != sha256:
            raise self._damaged(path)
        return dict(safetensors.numpy.load(content))

    def _damaged(self, path: Path) -> VerificationError:
        return VerificationError(
            f"{path} is not as this backtest wrote it", hint=f"delete {self.folder}, and run it from the beginning"
        )

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.safetensors"

    def _state(self, number: int) -> Path:
        return self.folder / f"state-{number:05d}.safetensors"
