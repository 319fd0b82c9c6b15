"""References and addresses: what each means, what is read from files to reach one, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from memory_fixtures import appended, built, open_version, queries_at, wide_table
from service_fixtures import served

from cli.main import run
from memory_index import Access, open_memory, versions
from memory_index.access import Token, read_access, read_tokens
from memory_index.errors import MemoryIndexError, NotFoundError, ResourceError, UsageError
from memory_index.references import find, is_address, require_local, use_found
from memory_index.tables import reading
from memory_index.versions import opening
from memory_index.versions.compact import compact
from memory_index.versions.store import Store

TOKEN = "a-token-of-the-tests"
CERTIFICATE = Path(__file__).with_name("certificates") / "server.pem"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three versions of `small`, of which the alias `prod` names the second."""
    folder = tmp_path_factory.mktemp("indexes")
    appended(folder, built(folder), 263, 300)
    Store(folder).set_alias("small", "2", "prod")
    return folder


@pytest.fixture(scope="module")
def address(folder, tmp_path_factory):
    refs = ("small", "small@1", "small@prod")
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(TOKEN)
    with served(folder, refs, token_file=tokens) as address:
        yield address


# What they mean


@pytest.mark.parametrize("ref", ["small", "small@1", "small@prod", "small@latest", "small@0003"])
def test_an_address_means_what_the_reference_means_there(folder, address, ref):
    local, remote = find(folder, ref), find("no folder", f"{address}/{ref}", access=Access(token=TOKEN))
    assert remote.ref == f"{address}/{local.ref}"
    assert remote.manifest == local.manifest


def test_half_an_address_is_refused_before_anything_is_opened():
    with pytest.raises(UsageError, match="is not the address of a version") as refused:
        find("indexes", "http://:1/load")
    assert "http://HOST:PORT/NAME@3" in refused.value.hint


@pytest.mark.parametrize(
    "ref",
    [
        "ftp://127.0.0.1:8815/small",
        "HTTP://127.0.0.1:8815/small",
        "htpp://127.0.0.1:8815/small",
        "http:/127.0.0.1:8815/small",
        "127.0.0.1:8815/small",
        "//small",
        "a/b",
    ],
)
def test_other_schemes_are_no_references(folder, ref):
    assert not is_address(ref)
    for access in (None, Access(token=TOKEN)):
        with pytest.raises(UsageError, match="neither a reference to an index nor an address") as refused:
            find(folder, ref, access=access)
        assert "http://HOST:PORT/NAME" in refused.value.hint


@pytest.mark.parametrize(("old", "now"), [("grpc", "http"), ("grpc+tls", "https")])
def test_an_address_of_the_old_service_is_answered_with_the_new_one(folder, old, now):
    for access in (None, Access(token=TOKEN)):
        with pytest.raises(UsageError, match="a service speaks HTTP by now") as refused:
            find(folder, f"{old}://host:1/load@1", access=access)
        assert f"it is {now}://host:1/load@1" in refused.value.hint


@pytest.mark.parametrize(
    "ref", ["http://host:1/load@1", "https://host:1/load@1", "grpc://host:1/load@1", "milvus:here.db/load@1"]
)
def test_what_changes_versions_takes_no_address(ref):
    assert is_address(ref)
    with pytest.raises(UsageError, match="is an address: to change it, name the version in its folder") as refused:
        require_local(ref, "to change it")
    assert "load@1" in refused.value.hint
    require_local("load@1", "to change it")


# Who is let in


def test_a_token_is_for_an_address_only(folder):
    with pytest.raises(UsageError, match="no token or certificate is needed"):
        find(folder, "small", access=Access(token=TOKEN))
    assert find(folder, "small", access=Access()).ref == "small@3"


def test_access_is_read_from_files(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("# who may ask\n\nfirst  the-token-of-the-first\nthe-token-of-another\n")
    assert read_tokens(tokens) == (
        Token(name="first", token="the-token-of-the-first"),
        Token(name="4", token="the-token-of-another"),
    )
    found = read_access(tokens, CERTIFICATE)
    assert (found.token, found.tls_ca) == ("the-token-of-the-first", CERTIFICATE.read_bytes())
    assert read_access(None, None) == Access()
    assert "the-token" not in repr(found) + repr(read_tokens(tokens))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no token"),
        (b"# nothing but this\n", "holds no token"),
        (b"one two-words three-words-and-more\n", "line 1: a token is one word"),
        ("a-token-with-an-\u00e9-in-it".encode(), "line 1: a token is one word"),
        (bytes(range(256)) * 10, "a token is one word"),
        (b"x" * (1 << 20) + b"y", "is larger than"),
    ],
)
def test_files_that_hold_no_token_are_refused(tmp_path, content, words):
    (tmp_path / "tokens").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_access(tmp_path / "tokens", None)


def test_a_short_token_may_be_shown_but_lets_nobody_in(tmp_path):
    """How long a token is, whoever checks it decides: that of a database may be short."""
    (tmp_path / "tokens").write_text("too-short\n")
    assert read_access(tmp_path / "tokens", None).token == "too-short"
    with pytest.raises(UsageError, match="line 1: a token is one word of at least 16"):
        read_tokens(tmp_path / "tokens")


def test_files_that_hold_no_certificate_are_refused(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing of the kind")
    with pytest.raises(UsageError, match="holds no certificate"):
        read_access(None, tmp_path / "ca.pem")
    for missing in (tmp_path / "not-there", tmp_path):
        with pytest.raises((NotFoundError, ResourceError)):
            read_access(missing, None)


# What is answered


def test_an_error_of_the_memory_is_the_same_behind_a_service(folder, address):
    local = open_version(Store(folder).resolve("small"), threads=1)
    remote = open_memory(folder, f"{address}/small", access=Access(token=TOKEN))
    asked = queries_at(wide_table(), [270, 280])
    for options in ({"k": 0}, {"k": 3, "views": (13,)}, {"k": 3, "scopes": ("mine",)}, {"k": 3, "min_gap": -1}):
        said = []
        for memory in (local, remote):
            with pytest.raises(MemoryIndexError) as refused:
                memory.search(asked, **options)
            said.append((refused.type, str(refused.value), refused.value.hint))
        assert said[0] == said[1]


# A version that is removed at this moment


def remove_before(monkeypatch, module, name: str, store: Store, ref: str) -> None:
    """The first call of a function of a module finds that a version has just been removed."""
    real, to_remove = getattr(module, name), [ref]

    def removing(*arguments, **options):
        while to_remove:
            store.remove(to_remove.pop())
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, removing)


@pytest.fixture
def store(tmp_path):
    """Three versions of `small`, the last of two segments."""
    appended(tmp_path, built(tmp_path), 263)
    compact(Store(tmp_path), "small")
    appended(tmp_path, Store(tmp_path).resolve("small"), 300)
    return Store(tmp_path)


STAGES = ["check_files", "read_encoder", "_segment_windows", "read_groups", "stored_windows", "read_series"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_version_that_is_removed_while_it_is_opened_is_not_there(store, monkeypatch, stage):
    version = store.resolve("small@4")
    remove_before(monkeypatch, opening, stage, store, version.ref)
    with pytest.raises(NotFoundError, match="small@4 is not there"):
        open_version(version)


@pytest.mark.parametrize("stage", ["check_files", "read_table", "read_encoder"])
def test_one_that_is_removed_while_it_grows_is_not_there(store, monkeypatch, stage):
    remove_before(monkeypatch, versions.append, stage, store, "small@4")
    with pytest.raises(NotFoundError, match="small@4 is not there"):
        versions.append.append(store, "small@4", wide_table(310))
    remove_before(monkeypatch, versions.compact, "read_series", store, "small@2")
    with pytest.raises(NotFoundError, match="small@2 is not there"):
        compact(store, "small@2")


def test_one_that_is_removed_while_it_is_checked_is_not_damaged(store, monkeypatch):
    version = store.resolve("small@4")
    remove_before(monkeypatch, opening, "read_encoder", store, version.ref)
    with pytest.raises(NotFoundError, match="small@4 is not there"):
        opening.verify_contents(version)


@pytest.mark.parametrize("ref", ["small", "small@latest"])
def test_a_name_then_means_another_version(store, monkeypatch, ref):
    remove_before(monkeypatch, opening, "read_encoder", store, "small@4")
    assert open_memory(store.indexes_dir, ref).manifest == store.resolve("small@3").manifest


def test_a_number_never_does(store, monkeypatch):
    remove_before(monkeypatch, opening, "read_encoder", store, "small@4")
    with pytest.raises(NotFoundError, match="small@4 was removed"):
        open_memory(store.indexes_dir, "small@4")


def test_what_is_not_found_for_another_reason_is_not_looked_for_again(store):
    asked = []

    def refuse(found):
        asked.append(found.ref)
        raise NotFoundError("no such series")

    with pytest.raises(NotFoundError, match="no such series"):
        use_found(lambda: find(store.indexes_dir, "small"), refuse)
    assert asked == ["small@4"]


def test_a_command_opens_what_the_name_means_then(store, tmp_path, monkeypatch, capfd):
    table = wide_table()
    columns = {"ds": table.times} | {series.series_id: series.values for series in table.series}
    pd.DataFrame(columns).to_csv(tmp_path / "table.csv", index=False)
    remove_before(monkeypatch, reading, "read_table", store, "small@4")
    command = ["forecast", str(tmp_path / "table.csv"), "--index", "small", "--indexes-dir", str(tmp_path), "--json"]
    assert run(command) == 0, capfd.readouterr().err
    assert json.loads(capfd.readouterr().out)["ref"] == "small@3"
