"""The rules of the house that a machine can check: who imports whom, what is loaded when, what never occurs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
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


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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
        [sys.executable, "-c", reported], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True, **options
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


# Who imports whom


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_dependencies_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    assert _imported(_tree(path)) & MAY_NOT_IMPORT[package] == set()


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
        f"import {_name(path).removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
        for path in MODULES
        if path.is_relative_to(ROOT / "memory_index")
    )
    loaded = _loaded_by(every_module)
    assert "numpy" in loaded
    assert loaded & {"torch", "transformers", "accelerate", "forecaster", "cli"} == set()


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


def test_model_library_loads_from_the_repository_root():
    # The folder datasets/ makes transformers believe that the library of that name is installed.
    program = """
from transformers import AutoConfig, AutoModel
config = AutoConfig.for_model("gpt2", n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=32)
model = AutoModel.from_config(config)
assert sum(parameter.numel() for parameter in model.parameters()) > 0
"""
    assert {"torch", "transformers"} <= _loaded_by(program)


def test_data_folders_hold_no_python():
    assert [_name(path) for folder in ("datasets", "indexes") for path in (ROOT / folder).rglob("*.py")] == []


def test_every_package_is_in_the_wheel_and_typed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == sorted(PACKAGES)
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").is_file()] == []


# What never occurs


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_nothing_unpickles(path):
    tree = _tree(path)
    assert _imported(tree) & UNPICKLERS == set()
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(call.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"{_name(path)}:{call.lineno}"
        assert options.get("allow_pickle", "False") == "False", where
        assert options.get("trust_remote_code", "False") == "False", where
        assert not function.endswith(("read_pickle", "to_pickle")), where
        if function in ("torch.load", "load") and "torch" in function:
            assert options.get("weights_only") == "True", where


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_code_is_ascii(path):
    path.read_bytes().decode("ascii")


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_everything_public_has_a_docstring(path):
    tree = _tree(path)
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        is_definition = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if is_definition and not node.name.startswith("_") and not ast.get_docstring(node):
            missing.append(node.name)
    assert missing == []


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_assert_is_not_given_a_tuple(path):
    assert [
        node.lineno
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple)
    ] == []
