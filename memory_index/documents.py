"""Anything that is told, in terms of JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from pathlib import PurePath
from typing import Any


def jsonable(value: Any) -> Any:
    """The same value in terms of dict, list, str, int, float, bool and None; what is not finite becomes None."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, date):  # pandas' NaT is one too, and the only one that differs from itself
        return value.isoformat() if value == value else None
    if isinstance(value, PurePath):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in fields(value)}
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind == "M":
        return _iso(value)
    if kind and kind in "biufUO":
        return jsonable(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def _iso(times: Any) -> Any:
    """ISO 8601 of a datetime64 or an array of them, to the second where that loses nothing; NaT becomes None."""
    import numpy as np

    seconds = times.astype("datetime64[s]")
    whole = bool(np.all((seconds == times) | np.isnat(times)))
    text = np.datetime_as_string(seconds if whole else times)
    return np.where(np.isnat(times), np.array(None), text.astype(object)).tolist()
