"""The layers of the package: a file imports from its own folder or from a layer below it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "optx_lite"
# From the top. Folders of one layer are independent of each other.
LAYERS = [
    {""},  # the public namespaces
    {"chebyshev"},
    {"api"},
    {"statistics"},
    {"driver"},
    {"solvers"},
    {"problem"},
    {"derivatives"},
    {"results"},
    {"linalg", "functions"},
    {"jax_support"},
]
LEVEL = {folder: level for level, folders in enumerate(LAYERS) for folder in folders}
FILES = sorted(PACKAGE.rglob("*.py"))


def folder_of(parts):
    return parts[0] if len(parts) > 1 else ""


def imported_folders(file):
    """The folders, within the package, of what a file imports."""
    here = file.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            parts = (*base, *(node.module.split(".") if node.module else ()))
            for name in node.names:
                yield folder_of((*parts, name.name)) if parts else name.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
            assert not any(name.split(".")[0] == "optx_lite" for name in names), "relative, please"


def test_every_folder_has_a_layer():
    assert {folder_of(file.relative_to(PACKAGE).parts) for file in FILES} == set(LEVEL)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file):
    own = folder_of(file.relative_to(PACKAGE).parts)
    for folder in imported_folders(file):
        if own == "":
            continue
        assert folder == own or LEVEL[folder] > LEVEL[own], f"{file.name} imports from {folder}"
