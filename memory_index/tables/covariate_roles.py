"""Which columns are covariates, by the names that a user gives.

How their cells are read is `covariate_columns.py`; what the calendar adds `calendar.py`; what a version has recorded
`recorded_roles.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import get_args

from memory_index.covariates import Covariate, Role
from memory_index.errors import IncompatibleError, UsageError
from memory_index.tables.problems import Problem, ProblemLog

ROLES: tuple[Role, ...] = get_args(Role)


def single_roles(named: Mapping[Role, Sequence[str]], used: Mapping[str, Sequence[str | None]]) -> dict[str, Role]:
    """The role of each column that was named for one, in the order known, observed, static.

    used: what other flags name. Raises `UsageError` for a name with two roles, or with a role and another use, and for
    a text in the place of several names.
    """
    roles: dict[str, Role] = {}
    for role, names in named.items():
        if isinstance(names, str):
            raise UsageError(f"{role} is the text '{names}', not a list of names", hint=f'give {role}=("{names}",)')
        for name in names:
            if name in roles:
                raise UsageError(
                    f"'{name}' is named twice: --{roles[name]} and --{role}", hint="a column has one role: name it once"
                )
            roles[name] = role
    for flag, others in used.items():
        for other in others:
            if other in roles:
                raise UsageError(f"'{other}' is named twice: --{roles[other]} and {flag}", hint="leave out one of them")
    return roles


def require_recorded(
    there: Collection[str], roles: Mapping[str, Role], recorded: Iterable[Covariate], source: str
) -> None:
    """Raise `IncompatibleError` that names the recorded columns which a table does not have."""
    before = {column.name: column for column in recorded}
    if missing := [name for name in roles if name not in there and name in before]:
        named = ", ".join(f"'{name}' ({roles[name]})" for name in missing)
        issued = any(before[name].vintages for name in missing)
        raise IncompatibleError(
            f"{source} has no column {named}, which the version was built with",
            hint="give a table that has it" + (", or its vintages with --vintages" if issued else ""),
        )


def note_unused(names: Iterable[str], what: str, log: ProblemLog) -> None:
    """Name the columns that are neither time, series, target nor covariate. what: why they are none."""
    for name in names:
        message = f"the column '{name}' is not used: {what}"
        roles = f'--known "{name}", --observed "{name}" or --static "{name}"'
        fix = f'give it a role with {roles}, or leave it out with --ignore "{name}"'
        log.add(Problem(kind="unused", column=name, message=message, fix=fix, severity="note"))
