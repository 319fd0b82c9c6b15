"""The rules of the house that a machine can check: who imports whom, what is loaded when, what never occurs.

A rule is one test, which names every place that breaks it.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import typer

from cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cli", "forecaster", "memory_index")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
MAY_NOT_IMPORT = {
    "memory_index": {"torch", "transformers", "accelerate", "forecaster", "cli"},
    "forecaster": {"cli"},
    "cli": set(),
}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
HEAVY = {"torch", "transformers", "accelerate", "faiss", "pandas", "numpy", "pyarrow", "matplotlib", "rich"}
HEAVY |= {"dash", "plotly", "flask"}


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60
# Longer for a reason: rooms that are rebuilt on their own, and tables of options.
MAY_BE_LONG = ("memory_index/service/", "memory_index/milvus/", "cli/options.py")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _module(path: Path) -> str:
    return _name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imported(tree: ast.Module) -> set[str]:
    """Top-level names of everything imported anywhere in a file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add((node.module or "").split(".")[0])
    return names


def _loaded_by(program: str, **options) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `program`, started in the repository root."""
    reported = program + "\nimport json, sys; print('\\n' + json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", reported], cwd=ROOT, capture_output=True, text=True, timeout=600, check=True, **options
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


# Who imports whom


def test_dependencies_point_one_way():
    wrong = {
        _name(path): names
        for path in MODULES
        if (names := _imported(_tree(path)) & MAY_NOT_IMPORT[path.relative_to(ROOT).parts[0]])
    }
    assert wrong == {}


def test_only_the_service_needs_what_the_extra_serve_brings():
    """A client and the format that both sides speak lie beside it and need nothing more."""
    needs = {"starlette", "uvicorn", "prometheus_client"}
    found = {_name(path) for path in MODULES if _imported(_tree(path)) & needs}
    assert found
    assert all(name.startswith("memory_index/service/") for name in found)
    modules = {_module(path) for path in MODULES}
    naming = {
        _name(path)
        for path in MODULES
        if any(module.startswith("memory_index.service") for module in _imported_modules(path, modules))
    }
    known = {"cli/options.py", "cli/commands/index_serve.py", "forecaster/serving.py"}
    assert {name for name in naming if not name.startswith("memory_index/service/")} == known


def _imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Modules of ours that a file imports anywhere: at its top, in functions, for the type checker."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & modules or {node.module or ""}
    return (found & modules) - {_module(path)}


def _circles(imports: dict[str, set[str]]) -> Iterator[list[str]]:
    """Groups of modules of which each is reached from each (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    waiting: list[str] = []

    def visit(module: str) -> Iterator[list[str]]:
        number[module] = lowest[module] = len(number)
        waiting.append(module)
        for imported in imports[module]:
            if imported not in number:
                yield from visit(imported)
                lowest[module] = min(lowest[module], lowest[imported])
            elif imported in waiting:
                lowest[module] = min(lowest[module], number[imported])
        if lowest[module] == number[module]:
            group = waiting[waiting.index(module) :]
            del waiting[waiting.index(module) :]
            if len(group) > 1:
                yield sorted(group)

    for module in imports:
        if module not in number:
            yield from visit(module)


def test_no_module_imports_itself_by_way_of_others():
    modules = {_module(path) for path in MODULES}
    assert list(_circles({_module(path): _imported_modules(path, modules) for path in MODULES})) == []


def test_a_circle_would_be_found():
    imports = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": {"e2"}, "e2": {"e"}}
    assert sorted(_circles(imports)) == [["a", "b", "c"], ["e", "e2"]]


def _commands(group) -> list:
    """The functions behind all commands of a group and of the groups in it."""
    inner = [_commands(command) if hasattr(command, "commands") else [command] for command in group.commands.values()]
    return [each for commands in inner for each in commands]


def test_commands_import_nothing_from_one_another():
    """What they share has a module of its own. Only `cli index` names the commands that are in files beside it."""
    modules = {command.callback.__module__ for command in _commands(typer.main.get_command(app))}
    assert len(modules) > 10
    for module in modules - {"cli.commands.index"}:
        for node in ast.walk(_tree(ROOT / f"{module.replace('.', '/')}.py")):
            if isinstance(node, ast.ImportFrom):
                imported = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert imported & modules == set(), module


def test_memory_index_loads_no_model_library():
    every_module = "\n".join(
        f"import {_module(path)}" for path in MODULES if path.is_relative_to(ROOT / "memory_index")
    )
    loaded = _loaded_by(every_module)
    assert "numpy" in loaded
    assert loaded & {"torch", "transformers", "accelerate", "forecaster", "cli"} == set()


def test_packages_load_their_modules_when_they_are_needed():
    loaded = _loaded_by("import memory_index.errors, forecaster.errors")
    assert {"memory_index", "forecaster"} <= loaded
    assert loaded & HEAVY == set()


def test_help_of_every_command_loads_nothing_heavy():
    program = """
import typer
from cli import main

def show(command, words):
    assert main.run([*words, "--help"]) == 0, words
    for name, child in getattr(command, "commands", {}).items():
        show(child, [*words, name])

show(typer.main.get_command(main.app), [])
"""
    loaded = _loaded_by(program)
    assert "typer" in loaded
    assert loaded & HEAVY == set()


def test_data_folders_hold_no_python():
    assert [_name(path) for folder in ("datasets", "indexes") for path in (ROOT / folder).rglob("*.py")] == []


def test_every_package_is_in_the_wheel_and_typed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == sorted(PACKAGES)
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").is_file()] == []


# What never occurs


def _unpickling(path: Path) -> Iterator[str]:
    yield from _imported(_tree(path)) & UNPICKLERS
    for call in (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)):
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        is_load = isinstance(call.func, ast.Attribute) and call.func.attr == "load"
        unsafe = isinstance(call.func, ast.Attribute) and call.func.attr in ("read_pickle", "to_pickle")
        unsafe |= any(_said(options.get(name)) != "False" for name in ("allow_pickle", "trust_remote_code"))
        unsafe |= is_load and ast.unparse(call.func) == "torch.load" and _said(options.get("weights_only")) != "True"
        if unsafe:
            yield f"{ast.unparse(call.func)}, line {call.lineno}"


def _said(value: ast.expr | None) -> str:
    return "False" if value is None else ast.unparse(value)


def test_nothing_unpickles():
    assert {_name(path): found for path in SOURCES if (found := list(_unpickling(path)))} == {}


def test_what_unpickles_would_be_found(tmp_path):
    source = tmp_path / "bad.py"
    source.write_text("import pickle\nnp.load(f, allow_pickle=True)\ntorch.load(f)\npd.read_pickle(f)\nnp.load(f)\n")
    found = list(_unpickling(source))
    assert found == ["pickle", "np.load, line 2", "torch.load, line 3", "pd.read_pickle, line 4"]


def test_code_is_ascii():
    assert [_name(path) for path in SOURCES if not path.read_bytes().isascii()] == []


def test_everything_public_has_a_docstring():
    missing = [_name(path) for path in MODULES if not ast.get_docstring(_tree(path))]
    for path in MODULES:
        for node in _tree(path).body:
            is_definition = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if is_definition and not node.name.startswith("_") and not ast.get_docstring(node):
                missing.append(f"{_name(path)}: {node.name}")
    assert missing == []


def test_assert_is_not_given_a_tuple():
    assert [
        f"{_name(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple)
    ] == []


def test_files_and_functions_are_short():
    long = []
    for path in (path for path in MODULES if not _name(path).startswith(MAY_BE_LONG)):
        num_lines = path.read_text().count("\n")
        if num_lines > MOST_LINES:
            long.append(f"{_name(path)}: {num_lines} lines")
        for node in ast.walk(_tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                num_lines = node.end_lineno - node.lineno + 1
                if num_lines > MOST_LINES_OF_A_FUNCTION:
                    long.append(f"{_name(path)}: {node.name} has {num_lines} lines")
    assert long == []
