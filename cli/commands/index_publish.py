"""`cli index publish`: a version's keys into a Milvus, and out of it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.opening import encoder_loader
from cli.options import DEFAULT_DIR, AsJson, IndexesDir, Ref
from cli.output import duration, note, print_json, print_table, progress

if TYPE_CHECKING:
    from memory_index.milvus.publish import Published


def publish(
    ref: Ref,
    to: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="milvus://HOST:PORT, milvus+tls://HOST:PORT, or milvus:PATH.db (Milvus Lite).",
            show_default=False,
        ),
    ],
    index_type: Annotated[
        str, typer.Option(help="HNSW, IVF_FLAT, IVF_SQ8 or FLAT; auto is HNSW on a server.")
    ] = "auto",
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token: USER:PASSWORD or an API key, on a line.")
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM file of the authority to believe.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Delete it there instead, complete or not.")] = False,
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Load the keys of a version into a Milvus, which then proposes the candidates of every search.

    The version stays the source of all else, and decides what is nearest and what may be seen. ADDRESS/REF is then
    taken wherever a REF is. What was interrupted is gone on with by calling it again.
    """
    from memory_index.access import read_access
    from memory_index.milvus import publish as publishing
    from memory_index.references import require_local
    from memory_index.versions.store import Store

    require_local(ref, "to publish it")
    version = Store(indexes_dir).resolve(ref)
    access = read_access(token_file, tls_ca)
    if remove:
        _tell_removed(version.ref, to, publishing.remove(version, to, access=access), as_json=as_json)
        return
    with progress(f"{version.ref}:") as report:
        published = publishing.publish(
            version,
            to,
            access=access,
            load_encoder=encoder_loader(version.manifest),
            index=index_type,
            report=report,
        )
    if as_json:
        print_json("index-publish", published_document(published))
    else:
        _print_published(published, to)


def _tell_removed(ref: str, address: str, names: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        print_json("index-publish-remove", {"ref": ref, "address": address, "removed": names})
    elif names:
        print_table(["removed"], [[name] for name in names])
    else:
        note(f"there is nothing of {ref} at {address}")


def _print_published(published: Published, to: str) -> None:
    from memory_index.search import EXACT_ROWS

    print_table(
        ["collection", "rows", "loaded now", "index", "recall@10", "seconds"],
        [
            [s.collection, s.num_rows, s.num_loaded, s.index, _recall(s.recall_at_10), round(s.seconds, 1)]
            for s in published.spaces
        ],
        title=f"{published.ref} at {to} (Milvus {published.server}), in {duration(published.seconds)}",
    )
    if any(space.recall_at_10 is None for space in published.spaces):
        note(
            f"recall -: a query sees at most {EXACT_ROWS:,} of these keys, which are compared here; Milvus is not asked"
        )
    note(f"next: name it {to.rstrip('/')}/{published.ref} wherever an index is asked for")


def _recall(measured: float | None) -> float | str:
    return "-" if measured is None else round(measured, 4)


def published_document(published: Published) -> dict[str, Any]:
    """The keys that scripts rely on (docs/cli.md), then the rest.

    `recall_at_10` is the least of the key spaces', null where Milvus is never asked: keys so few are compared here.
    """
    return {
        "ref": published.ref,
        "fingerprint": published.fingerprint,
        "address": published.address,
        "server": published.server,
        "num_rows": published.num_rows,
        "num_loaded": sum(space.num_loaded for space in published.spaces),
        "recall_at_10": min(
            (space.recall_at_10 for space in published.spaces if space.recall_at_10 is not None), default=None
        ),
        "seconds": published.seconds,
        "spaces": [
            {
                "scope": space.space.scope,
                "view": space.space.view,
                "collection": space.collection,
                "num_rows": space.num_rows,
                "num_loaded": space.num_loaded,
                "index": space.index,
                "recall_at_10": space.recall_at_10,
                "seconds": space.seconds,
            }
            for space in published.spaces
        ],
    }
