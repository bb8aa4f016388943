"""How Sphinx builds the site: ``make docs``. Nothing is fetched from the network."""

import shutil
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_ext"), str(ROOT)]

# -- what it is ----------------------------------------------------------------------------

project = "optx_lite"
author = "The optx_lite authors"
copyright = "the optx_lite authors, Apache-2.0"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

# -- what it is made of --------------------------------------------------------------------

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx-mathjax-offline",
    "numpydoc",
    "myst_nb",
    "module_text",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]

# A notebook that is added to notebooks/ is a tutorial: it is shown with the outputs that it is
# committed with, which `make notebook` has made and the tests look at.
TUTORIALS = HERE / "tutorials"
for old in TUTORIALS.glob("*.ipynb"):
    old.unlink()
for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
    shutil.copy2(notebook, TUTORIALS)

# -- pages ---------------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # the start page; its pictures come from the code beside them
nb_execution_excludepatterns = ["tutorials/*"]
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

# -- reference -----------------------------------------------------------------------------

default_role = "py:obj"
autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
python_maximum_signature_line_length = 88

# -- how it looks --------------------------------------------------------------------------

highlight_language = "none"  # where a block names none
html_theme = "pydata_sphinx_theme"
html_title = f"optx_lite {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "optx_lite"},
    "show_prev_next": False,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
_ALONE = ("index", "benchmarks", "correctness", "stability", "contributing", "changelog")
html_sidebars = {page: [] for page in _ALONE}
