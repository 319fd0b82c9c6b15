"""Arrow IPC streams from somebody who is not believed: what is in them is checked, and lies where it came.

A few compressed kB may say that they are gigabytes. So compressed batches are refused, before anything of them is read;
what is left is never larger than the bytes that came.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pyarrow as pa

from memory_index.errors import IncompatibleError, MemoryIndexError, UsageError


def read_batches(content: bytes, schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow stream, checked; they lie in `content`.

    schema: that it must have; None takes any of numbers, times and texts (a column without values has no bytes, and may
    say that it is of any length). Raises `UsageError` for what is malformed, `IncompatibleError` for another schema.
    """
    try:
        reader = pa.ipc.MessageReader.open_stream(content)
        found = pa.ipc.read_schema(reader.read_next_message())
        if schema is not None and found != schema:
            raise IncompatibleError(f"such a message has the columns {', '.join(schema.names)}")
        if schema is None and not all(_is_plain(kind) for kind in found.types):
            raise UsageError("a table has columns of numbers, times and texts", hint="send others as one of these")
        for message in reader:
            if message.type != "record batch":
                raise UsageError(f"a message holds batches, and no {message.type[:40]}")
            if _is_compressed(message.metadata.to_pybytes()):
                raise UsageError("a message is compressed, which is not taken", hint="write it without compression")
            batch = pa.ipc.read_record_batch(message, found)
            batch.validate(full=True)
            yield batch
    except (pa.ArrowException, OSError, ValueError, StopIteration, struct.error) as error:
        if isinstance(error, MemoryIndexError):
            raise
        raise UsageError("the message is malformed: it must be an Arrow IPC stream") from error


def _is_plain(kind: pa.DataType) -> bool:
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(is_text or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind))


def _is_compressed(metadata: bytes) -> bool:
    """Whether a message of Arrow IPC says that its buffers are compressed.

    Its metadata are a flatbuffer, which Arrow has verified: a table begins with the distance to its list of fields,
    which has the place of each, 0 for one that is not there. Field 2 of a `Message` is its header; field 3 of a
    `RecordBatch` is the compression (Message.fbs in the Arrow format).
    """

    def field(table: int, number: int) -> int:
        fields_at = table - struct.unpack_from("<i", metadata, table)[0]
        if 4 + 2 * number >= struct.unpack_from("<H", metadata, fields_at)[0]:
            return 0
        place: int = struct.unpack_from("<H", metadata, fields_at + 4 + 2 * number)[0]
        return place and table + place

    header = field(struct.unpack_from("<I", metadata, 0)[0], 2)
    return field(header + struct.unpack_from("<I", metadata, header)[0], 3) != 0
