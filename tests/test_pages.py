"""What is written runs: the README and every page of the documentation.

The examples of a page run in order and in one namespace, and print what they say they print. Those
of the start page run where its pictures are drawn, in ``make docs``.
"""

import ast
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import optx_lite as ox
from benchmarks import speed
from benchmarks.table import put

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("how-to/*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SAID = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)
NUMBER = re.compile(r"\d+\.?\d*")


@pytest.mark.usefixtures("x64_off")  # as a reader has it who sets no flag
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_print_what_they_say(page, capsys):
    namespace = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), namespace)
        printed = capsys.readouterr().out.splitlines()
        said = SAID.findall(block)
        assert [skeleton(line) for line in printed] == [skeleton(line) for line in said], block
        assert numbers(printed) == pytest.approx(numbers(said), rel=1e-5), block


def skeleton(line):
    """The line without its numbers, and without the blanks that align them."""
    return re.sub(r"\s+", "", NUMBER.sub("#", line))


def numbers(lines):
    return [float(number) for line in lines for number in NUMBER.findall(line)]


def test_pages_have_examples():
    assert sum(len(BLOCK.findall(page.read_text())) for page in PAGES) >= 30


LINKED = [*PAGES, *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text())
    for target in targets:
        path = (page.parent / target).resolve()
        if path.parent == DOCS / "tutorials":  # copied there when the site is built
            path = ROOT / "notebooks" / path.name if path.suffix == ".ipynb" else path
        assert path.exists(), f"{page.name}: {target}"


# -- the reference -------------------------------------------------------------------------


def public(namespace):
    """The names of a namespace which are not modules, ours or others."""
    if hasattr(namespace, "__all__"):
        return set(namespace.__all__)
    return {
        name
        for name, value in vars(namespace).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }


def listed():
    """The names that the pages of the reference list, by their namespace."""
    names = {}
    for page in DOCS.glob("reference/*.rst"):
        module = None
        for line in page.read_text().splitlines():
            if line.startswith(".. currentmodule:: "):
                module = line.split()[-1]
            elif re.fullmatch(r"   \w+", line):
                names.setdefault(module, []).append(line.strip())
    return names


@pytest.mark.parametrize("name", ["", "elementwise", "chebyshev", "plot"])
def test_the_reference_lists_all_that_is_public(name):
    namespace = getattr(ox, name) if name else ox
    found = listed()[namespace.__name__]
    assert len(found) == len(set(found))
    assert set(found) == public(namespace)


def test_the_mathematics_of_every_solver_is_shown():
    shown = set()
    for page in DOCS.glob("methods/*.rst"):
        shown |= set(re.findall(r"module-text:: optx_lite\.(\S+)", page.read_text()))
    package = ROOT / "optx_lite"
    for module in shown:
        path = package.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or path.is_dir(), module
    solvers = package / "solvers"
    for path in solvers.glob("*/*.py"):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if re.search(r"\((18|19|20)\d\d\)|\b(19|20)\d\d\b", text):  # it cites a paper
            assert module in shown, module


def test_the_oldest_versions_are_those_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    tested = {tuple(line.split("==")) for line in oldest if not line.startswith("#")}
    supported = {tuple(line.split(">=")) for line in project["dependencies"]}
    assert {name for name, _ in tested} == {name for name, _ in supported}
    for name, version in supported:
        assert any(n == name and f"{v}.".startswith(f"{version}.") for n, v in tested), name


def test_the_tables_of_speed_have_their_places(tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text((DOCS / "benchmarks.md").read_text())
    for name in {row.table for row in speed.ROWS.values()} | {"cold"}:
        put(f"the table {name}", name, page)
        assert f"the table {name}" in page.read_text()


def test_a_version_is_one():
    pyproject = (ROOT / "pyproject.toml").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert f'\nversion = "{ox.__version__}"\n' in pyproject
    assert f"\nversion: {ox.__version__}\n" in citation
    assert f"\n## [{ox.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()
