"""Options that several commands share, and that reach a command as one record.

@app.command()
@reads_table
@asks_memory
def evaluate(file: Annotated[Path, ...], *, indexes: Indexes, table_options: ReadOptions) -> None: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, get_type_hints

# Types of records, which commands import for the type checker only. typer never sees them.
RECORDS = {"ReadOptions": object, "Settings": object}


def with_record(
    command: Callable[..., None],
    name: str,
    options: Mapping[str, tuple[Any, Any]],
    record: Callable[[dict[str, Any]], object],
) -> Callable[..., None]:
    """Give a command these options in the place of its argument `name`, which is what `record` makes of them.

    options: by name, type and default of each.
    """

    @wraps(command)
    def with_options(**arguments: Any) -> None:
        given = {each: arguments.pop(each) for each in options}
        command(**arguments, **{name: record(given)})

    # typer reads the signature: the command's own parameters, with the record replaced by its options.
    own = get_type_hints(command, localns=RECORDS, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    taken = [
        inspect.Parameter(each, keyword, default=default, annotation=kind) for each, (kind, default) in options.items()
    ]
    parameters: list[inspect.Parameter] = []
    for each in inspect.signature(command).parameters.values():
        parameters += taken if each.name == name else [each.replace(kind=keyword, annotation=own[each.name])]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_options
