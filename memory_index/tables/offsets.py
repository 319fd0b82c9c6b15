"""UTC offsets in the text of times: found, taken off, and told apart from ranges of time.

ISO 8601 in its extended and basic forms, to the hour, the minute or the second; `Z`, `UTC` and `GMT`; a zone's name in
brackets behind the offset (RFC 9557) is not needed and left out. What is left is a time without an offset.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.tables.problems import Problem, ProblemLog

OFFSET = r"(?P<offset>[Zz]|UTC|GMT|[+-]\d\d(?::?\d\d(?::?\d\d)?)?)"
CLOCK = r"\d{1,2}(?::?\d\d(?::?\d\d(?:[.,]\d+)?)?)?(?:\s*[AaPp]\.?[Mm]\.?)?"
BEHIND_A_CLOCK = rf"^(?P<before>.*\d[Tt ]{CLOCK})\s*{OFFSET}(?P<after>)(?:\[[\w/+-]+\])?$"
AT_THE_END = rf"^(?P<before>.*\S)\s*{OFFSET}(?P<after>)$"
IN_BETWEEN = rf"^(?P<before>.*\S)\s+{OFFSET}(?P<after>\s.*)$"
DIRECTIVE = re.compile(r"\s*%[zZ]")
MINUS_SIGN = "\u2212"  # what ISO 8601 asks for where a character set has it
LARGEST = (-12 * 60, 14 * 60)  # minutes; no place on earth keeps another time


def split_offsets(
    texts: pa.Array, time_format: str | None, log: ProblemLog
) -> tuple[pa.Array, list[str | None], str | None]:
    """Times without their offsets, the offsets (None where there is none), and the format without its `%z` or `%Z`.

    texts: string [n], trimmed. Raises `DataError` for ranges of time, whose ends look like offsets.
    """
    directive = None if time_format is None else DIRECTIVE.search(time_format)
    form = BEHIND_A_CLOCK
    if time_format is not None and directive is not None:
        form = AT_THE_END if directive.end() == len(time_format) else IN_BETWEEN
        time_format = time_format[: directive.start()] + time_format[directive.end() :]
    texts = pc.replace_substring(texts, MINUS_SIGN, "-")
    found = pc.extract_regex(texts, form)
    offsets = pc.struct_field(found, "offset").to_pylist()
    if not any(offsets):
        return texts, offsets, time_format
    _refuse_ranges(offsets, log)
    rest = pc.binary_join_element_wise(pc.struct_field(found, "before"), pc.struct_field(found, "after"), "")
    return pc.coalesce(rest, texts), offsets, time_format


def has_offset(text: str) -> bool:
    """Whether a cell is a time of day with a UTC offset behind it."""
    return re.match(BEHIND_A_CLOCK, text) is not None


def without_offset(text: str) -> str:
    """A cell without the UTC offset behind its time of day."""
    found = re.match(BEHIND_A_CLOCK, text)
    return found["before"] if found else text


def offset_length(offset: str) -> np.timedelta64:
    """How far a clock with this offset is ahead of UTC, in ns."""
    return np.timedelta64(_seconds(offset) * 10**9, "ns")


def zone_name(length: np.timedelta64) -> str | None:
    """The name of the zone that is always so far ahead of UTC, None where its seconds do not allow one."""
    minutes, rest = divmod(abs(int(length.astype(np.int64))) // 10**9, 60)
    if rest:
        return None
    if minutes == 0:
        return "UTC"
    return f"UTC{'+' if length > np.timedelta64(0) else '-'}{minutes // 60:02d}:{minutes % 60:02d}"


def _seconds(offset: str) -> int:
    if not offset.startswith(("+", "-")):
        return 0
    digits = offset[1:].replace(":", "").ljust(6, "0")
    seconds = int(digits[:2]) * 3600 + int(digits[2:4]) * 60 + int(digits[4:])
    return -seconds if offset[0] == "-" else seconds


def _refuse_ranges(offsets: list[str | None], log: ProblemLog) -> None:
    for offset in offsets:
        if offset and not LARGEST[0] * 60 <= _seconds(offset) <= LARGEST[1] * 60:
            message = f"the times seem to be ranges: '{offset}' is no UTC offset"
            log.stop(Problem(kind="time", message=message, fix="keep one time of each, such as the first"))
