"""The directive ``module-text``: a module's docstring as a part of a page.

The docstrings of the modules hold the mathematics in plain text: paragraphs, lists and indented
formulas. They are shown as they are written, formulas in a fixed-width block, so that no character
in them is markup but the backticks.
"""

import ast
import itertools
import re
import textwrap
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
LITERAL = re.compile(r"``.+?``|`.+?`", re.DOTALL)
GAP = re.compile(r" {5,}(\([^ ]*\))$", re.MULTILINE)  # before the number of an equation
ITEM = re.compile(r"(- |\d+\. )")
MARKUP = re.compile(r"([*|_\\])")


def docstring(module):
    """The file of a module, and its docstring."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path, ast.get_docstring(ast.parse(path.read_text())) or ""


def as_rst(text):
    """Plain text as reStructuredText: only what stands in backticks is marked up."""
    out, indent = [], ""
    for is_formula, lines in itertools.groupby(text.splitlines(), _is_formula):
        run = "\n".join(lines)
        if is_formula:
            formula = textwrap.indent(
                GAP.sub(r"    \1", textwrap.dedent(run.rstrip())), indent + "    "
            )
            out.append(f"\n{indent}.. code-block:: text\n\n{formula}\n")
        else:
            out.append(_escaped(run))
            indent = _indent_at_end(run, indent)
    return "\n".join(out)


def _is_formula(line):
    return line.startswith("    ")


def _indent_at_end(run, indent):
    """By how much a formula after these lines is indented: as the list item is that it is in."""
    for before, line in itertools.pairwise(["", *run.splitlines()]):
        item = ITEM.match(line)
        if item:
            indent = " " * len(item[0])
        elif line and not before and not line.startswith(" "):
            indent = ""
    return indent


def _escaped(run):
    out, end = "", 0
    for literal in LITERAL.finditer(run):
        # An escaped blank, which is not shown, ends a literal before whatever comes next.
        out += MARKUP.sub(r"\\\1", run[end : literal.start()]) + f"``{literal[0].strip('`')}``\\ "
        end = literal.end()
    return out + MARKUP.sub(r"\\\1", run[end:])


class ModuleText(SphinxDirective):
    """``.. module-text:: optx_lite.solvers.least_squares.lm``."""

    required_arguments = 1

    def run(self):
        path, text = docstring(self.arguments[0])
        for file in (str(path), __file__):
            self.env.note_dependency(file)
        source = as_rst(text)
        node = nodes.container()
        self.state.nested_parse(StringList(source.splitlines(), str(path)), 0, node)
        return node.children


def setup(app):
    app.add_directive("module-text", ModuleText)
    return {"parallel_read_safe": True}
