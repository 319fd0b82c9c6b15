"""Reading a table as one was read before: the covariates that a version has recorded, merged with what is typed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from memory_index.covariates import Covariate
from memory_index.errors import IncompatibleError
from memory_index.tables.calendar import CALENDAR, HOLIDAYS, names_of
from memory_index.tables.columns import ReadOptions
from memory_index.tables.covariate_roles import ROLES


def with_recorded(options: ReadOptions, columns: Iterable[Covariate]) -> ReadOptions:
    """Reading options with the roles, kinds and words of covariates that were recorded, as by a version.

    Nothing needs to be typed again; what is typed must agree. Raises `IncompatibleError` for a role, a column, a
    calendar or holidays that differ from what was recorded.
    """
    columns = tuple(columns)
    recorded = {column.name: column for column in columns if not column.source}
    for name, role in options.roles.items():
        if name not in recorded:
            known = ", ".join(f"'{each}'" for each in recorded) or "none"
            raise IncompatibleError(
                f"--{role} {name}: the version has no such covariate (it has {known})",
                hint="leave the option out, or build a new version with it",
            )
        if recorded[name].role != role:
            raise IncompatibleError(
                f"--{role} {name}: in the version '{name}' is {recorded[name].role}",
                hint="leave the option out, or build a new version with it",
            )
    features = tuple(dict.fromkeys(name for c in columns if c.source == CALENDAR for name in names_of([c.name])))
    countries = [column.source.removeprefix(HOLIDAYS) for column in columns if column.source.startswith(HOLIDAYS)]
    country = countries[0] if countries else None
    typed = tuple(name for name in options.calendar if name != "none")
    if typed not in ((), ("auto",)) and set(typed) != set(features):
        raise IncompatibleError(
            f"--calendar {','.join(typed)}: the version was built with {','.join(features) or 'none'}",
            hint="leave the option out, or build a new version with it",
        )
    if typed == ("auto",) and not features:
        raise IncompatibleError(
            "--calendar auto: the version was built without a calendar", hint="build a new version with it"
        )
    if options.holidays is not None and options.holidays != country:
        raise IncompatibleError(
            f"--holidays {options.holidays}: the version was built with {country or 'none'}",
            hint="leave the option out, or build a new version with it",
        )
    by_role = {role: tuple(c.name for c in recorded.values() if c.role == role) for role in ROLES}
    return replace(
        options,
        known=by_role["known"],
        observed=by_role["observed"],
        static=by_role["static"],
        calendar=features,
        holidays=country,
        recorded=columns,
    )
