"""Execute notebooks in place, and record in each what was executed.

``python notebooks/execute.py [notebooks]``; all of them by default. Their metadata get a digest of
the code, by which `tests/test_notebooks.py` sees when code was changed and not executed again.
"""

import hashlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def digest(notebook: dict) -> str:
    """Of the code, in the order of its cells."""
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    return hashlib.sha256("\n\0".join(code).encode()).hexdigest()


def execute(path: Path) -> None:
    """Run one in its own folder; an error in it is raised, and nothing written."""
    import nbformat
    from nbconvert.preprocessors import ExecutePreprocessor

    notebook = nbformat.read(path, as_version=4)
    ExecutePreprocessor(timeout=600, kernel_name="python3").preprocess(
        notebook, {"metadata": {"path": str(FOLDER)}}
    )
    notebook.metadata["executed"] = digest(notebook)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(FOLDER.glob("*.ipynb")):
        print(name, flush=True)
        execute(Path(name))
