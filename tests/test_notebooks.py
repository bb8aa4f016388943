"""The notebooks as they are committed: executed, whole and without an error.

Executing them takes minutes: `make notebook` does.
"""

import ast
import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES = 450_000
PICTURES = {"image/png", "image/svg+xml"}


def digest(notebook):
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    return execute.digest(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_as_it_was_executed(path):
    notebook = json.loads(path.read_text())
    assert path.stat().st_size < MOST_BYTES
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    kinds = {output["output_type"] for output in outputs}
    assert "error" not in kinds
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any(PICTURES & set(output.get("data", ())) for output in outputs)
    for cell in code:
        ast.parse("".join(cell["source"]))
    assert notebook["metadata"].get("executed") == digest(notebook), "run `make notebook`"


def test_a_change_of_code_is_seen():
    notebook = json.loads(NOTEBOOKS[0].read_text())
    before = digest(notebook)
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["source"] = [*code["source"], " "]
    assert digest(notebook) != before
