"""`cli index`: build versions, and the registry of what there is.

The commands that make a version are in `index_build.py`, the one that asks it in `neighbours.py`, the one that loads it
into a Milvus in `index_publish.py`, the one that lets others ask in `index_serve.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.index_build import append, build, compact
from cli.commands.index_publish import publish
from cli.commands.index_serve import serve
from cli.commands.neighbours import neighbours
from cli.opening import encoder_loader
from cli.options import DEFAULT_DIR, REF, AsJson, Indexes, IndexesDir, Ref, asks_memory
from cli.output import note, print_json, print_table, progress
from cli.reports.drift_report import drift_document, find_drift, print_drift
from cli.reports.usage_document import find_usage, usage_document
from cli.reports.usage_report import print_usage, write_pictures
from cli.reports.version_diff import difference_document, print_difference
from cli.reports.version_report import FINGERPRINT_SHOWN, describe_bytes, parent_ref, print_version, version_document
from cli.targets import require_targets

if TYPE_CHECKING:
    from memory_index.references import FoundVersion
    from memory_index.versions.store import IndexEntry

app = typer.Typer(
    help="Build an index from a table; list, compare, check, name and move its versions.", no_args_is_help=True
)

DAMAGED, REFUSED = 5, 7

Name = Annotated[str, typer.Argument(help="Name of an index.", show_default=False)]

app.command(epilog="Example: cli index build load.csv --name load --lookback 336 --horizon 96")(build)
app.command(epilog="Example: cli index append load new.csv")(append)


@app.command("list", epilog="Example: cli index list")
def list_versions(
    name: Annotated[str | None, typer.Argument(help="Only this index.", show_default=False)] = None,
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """List every version of every index, or of one."""
    from memory_index.versions.store import Store

    entries = Store(indexes_dir).list_indexes(name)
    if as_json:
        print_json("index-list", {"indexes": entries})
    elif entries:
        _print_entries(entries)
    else:
        command = "cli index build FILE --name NAME --lookback 512 --horizon 96"
        note(f"there is no index in {indexes_dir}; build one: {command}")


def _print_entries(entries: tuple[IndexEntry, ...]) -> None:
    rows = []
    for entry in entries:
        newest = entry.versions[-1].version if entry.versions else None
        for each in entry.versions:
            aliases = ", ".join([*(["latest"] if each.version == newest else []), *each.aliases])
            ref, windows = f"{entry.name}@{each.version}", None if each.problem else each.num_rows
            rows.append([ref, aliases, windows, each.created_at, each.fingerprint[:FINGERPRINT_SHOWN]])
    print_table(["version", "aliases", "windows", "created", "fingerprint"], rows)
    for entry in entries:
        for each in entry.versions:
            if each.problem:
                note(f"{entry.name}@{each.version} cannot be used: {each.problem}")


@app.command(epilog="Example: cli index show load@prod --plot load.png")
@asks_memory
def show(
    ref: Annotated[str, typer.Argument(metavar="REF", help=f"{REF}.", show_default=False)],
    plot: Annotated[Path | None, typer.Option(help="Draw what it covers and how it is used: PNG, SVG or PDF.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write pictures and tables as one self-contained page.")] = None,
    as_json: AsJson = False,
    *,
    indexes: Indexes,
) -> None:
    """Show what a version holds and how it was built. Its files are not checked: see verify.

    Of one that was appended to it also says how far today's windows are from those that it was fitted on (drift), and
    whether to build it again.

    With --plot or --html it is opened, and a sample of its windows is asked: which stretches are retrieved far too
    often (hubs) or never, how far away the nearest window usually is, and where windows are missing.
    """
    from memory_index.references import is_address, require_local
    from memory_index.versions.store import Store

    require_targets(picture=plot, page=html)
    if plot or html:
        require_local(ref, "to see how it is used")
    found = indexes.find(ref)
    if is_address(ref):
        _show_found(found, as_json=as_json)
        return
    store = Store(indexes.folder)
    version = store.resolve(found.ref)
    aliases = sorted(alias for alias, number in store.aliases(version.name).items() if number == version.number)
    used, moved = find_usage(version) if plot or html else None, find_drift(version)
    if as_json:
        usage = {} if used is None else {"usage": usage_document(used)}
        more = {"aliases": aliases, "drift": drift_document(version, moved)}
        print_json("index-show", version_document(version) | more | usage)
    else:
        print_version(version, ("made from", parent_ref(store, version)), ("aliases", ", ".join(aliases)))
        if moved is not None:
            print_drift(version, moved)
        if used is not None:
            print_usage(used)
    if used is not None:
        write_pictures(used, plot, html)


def _show_found(found: FoundVersion, *, as_json: bool) -> None:
    """What there is to say of a version at an address: all but its aliases, its drift, and what it was made from."""
    if as_json:
        print_json("index-show", version_document(found) | {"aliases": None, "drift": None})
    else:
        print_version(found)


@app.command(epilog="Example: cli index diff load@1 load@2")
def diff(
    first: Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME@3 or NAME@alias.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="REF", help="Likewise, of any index.", show_default=False)],
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Show what two versions do not have in common."""
    from memory_index.references import require_local
    from memory_index.versions.manifest import difference
    from memory_index.versions.store import Store

    for ref in (first, second):
        require_local(ref, "to compare it")
    store = Store(indexes_dir)
    versions = (store.resolve(first), store.resolve(second))
    found = difference(versions[0].manifest, versions[1].manifest)
    if as_json:
        print_json("index-diff", difference_document(versions, found))
    else:
        print_difference(versions, found)


@app.command(epilog="Example: cli index verify load@prod")
def verify(ref: Ref, indexes_dir: IndexesDir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Check that a version is what was published.

    Every byte is compared; then counts, widths, keys and recall are. Exit code 5 if anything is not as it was, 7 if
    files may not be read and nothing else is wrong.
    """
    from memory_index.references import require_local
    from memory_index.versions.opening import verify_contents
    from memory_index.versions.store import Store
    from memory_index.versions.version import verify as verify_bytes

    require_local(ref, "to check it")
    store = Store(indexes_dir)
    location = store.locate(ref)
    with progress(f"{location.ref}: checking every byte, then what it holds"):
        problems = verify_bytes(location)
        if not problems:
            version = store.resolve(location.ref)
            problems = tuple(verify_contents(version, load_encoder=encoder_loader(version.manifest)))
    refused = all(problem.kind == "unreadable" for problem in problems)
    if as_json:
        shown = [{"file": p.file, "message": p.message, "kind": p.kind, "hint": p.hint} for p in problems]
        print_json("index-verify", {"ref": location.ref, "ok": not problems, "problems": shown})
    elif problems:
        print_table(["file", "what is wrong", "what to do"], [[p.file, p.message, p.hint] for p in problems])
        note(f"{location.ref} {'cannot be checked' if refused else 'is damaged'}: {location.path}")
    else:
        state = "ok: every byte as published, and its keys answer as they did"
        print_table(["version", "state"], [[location.ref, state]])
    if problems:
        raise typer.Exit(REFUSED if refused else DAMAGED)


@app.command(epilog="Example: cli index alias load 3 prod")
def alias(
    name: Name,
    version: Annotated[str, typer.Argument(help="Number of a version, or one of its aliases.", show_default=False)],
    alias: Annotated[str, typer.Argument(help="A word: NAME@ALIAS then means this version.", show_default=False)],
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Name a version, or let a name that is taken mean another one. The switch is atomic."""
    from memory_index.references import require_local
    from memory_index.versions.store import Store

    require_local(name, "to give it an alias")
    store = Store(indexes_dir)
    target = store.set_alias(name, version, alias)
    if as_json:
        print_json("index-alias", {"alias": f"{name}@{alias}", "ref": target.ref})
    else:
        print_table(["alias", "version"], [[f"{name}@{alias}", target.ref]])


@app.command(epilog="Example: cli index unalias load prod")
def unalias(
    name: Name,
    alias: Annotated[str, typer.Argument(help="The alias to forget.", show_default=False)],
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Forget an alias. The version that it names stays."""
    from memory_index.references import require_local
    from memory_index.versions.store import Store

    require_local(name, "to forget an alias")
    Store(indexes_dir).remove_alias(name, alias)
    if as_json:
        print_json("index-unalias", {"alias": f"{name}@{alias}"})
    else:
        print_table(["forgotten"], [[f"{name}@{alias}"]])


@app.command(epilog="Example: cli index remove load@2")
def remove(
    ref: Annotated[str, typer.Argument(metavar="REF", help="NAME@3: one version, said in full.", show_default=False)],
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Delete one version for good. A version that an alias names is refused; others that share its files stay whole."""
    from memory_index.references import require_local
    from memory_index.versions.store import Store

    require_local(ref, "to remove it")
    location = Store(indexes_dir).remove(ref)
    if as_json:
        print_json("index-remove", {"ref": location.ref})
    else:
        print_table(["removed"], [[location.ref]])


@app.command(epilog="Example: cli index gc load --keep 3 --dry-run")
def gc(
    name: Annotated[str | None, typer.Argument(help="Only this index.", show_default=False)] = None,
    keep: Annotated[
        int | None,
        typer.Option(help="Also delete all but the newest so many versions of each index.", show_default="delete none"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Delete leftovers and, with --keep, old versions.

    Leftovers are of killed builds and removals. A version that an alias names is never deleted.
    """
    from memory_index.versions.store import Store

    report = Store(indexes_dir).gc(name, keep=keep, dry_run=dry_run)
    if as_json:
        print_json("index-gc", {field: getattr(report, field) for field in report.__slots__})
        return
    found = [*report.versions, *report.leftovers]
    if found:
        print_table(["would be deleted" if dry_run else "deleted"], [[each] for each in found])
        note(f"{describe_bytes(report.bytes)} {'would be freed' if dry_run else 'freed'}")
    else:
        note("there is nothing to delete")
    for each in report.busy:
        note(f"{each} is being built at this moment: leftovers of its builds stay until a later gc")


app.command(epilog="Example: cli index compact load")(compact)


@app.command(epilog="Example: cli index export load@3 load.zip")
def export(
    ref: Ref,
    file: Annotated[Path, typer.Argument(help="A .zip that does not exist yet, or a folder.", show_default=False)],
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Write a version, with all that it needs, into one file. Its bytes are checked on the way."""
    from memory_index.references import require_local
    from memory_index.versions.archive import export as write_archive
    from memory_index.versions.store import Store

    require_local(ref, "to export it")
    version = Store(indexes_dir).resolve(ref)
    with progress(f"{version.ref} to {file}"):
        path = write_archive(version, file)
    num_bytes = path.stat().st_size
    if as_json:
        document = {"ref": version.ref, "path": path, "bytes": num_bytes, "fingerprint": version.manifest.fingerprint}
        print_json("index-export", document)
    else:
        print_table(["version", "file", "size"], [[version.ref, str(path), describe_bytes(num_bytes)]])


@app.command("import", epilog="Example: cli index import load.zip --name load")
def import_archive(
    file: Annotated[Path, typer.Argument(help="What `cli index export` has written.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name of the index.", show_default="the one that it had")] = None,
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Publish the version in an archive as the next one of its name. Nothing is added if it is there already."""
    from memory_index.versions.archive import import_version
    from memory_index.versions.store import Store

    with progress(f"reading {file}"):
        imported = import_version(Store(indexes_dir), file, name)
    if as_json:
        print_json("index-import", version_document(imported.version) | {"was_present": imported.was_present})
        return
    print_version(imported.version)
    if imported.was_present:
        note(f"{imported.version.ref} is this version already: nothing was added")


app.command(epilog='Example: cli index neighbours load load.csv --series north --at "2024-03-01 00:00"')(neighbours)
app.command(epilog="Example: cli index publish load@3 --to milvus://127.0.0.1:19530")(publish)
app.command(epilog="Example: cli index serve load@prod --port 8815")(serve)
