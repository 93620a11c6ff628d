"""Sphinx settings of the course's site: ``make site``. Nothing is executed and nothing is asked of the network."""

from importlib.util import find_spec
from pathlib import Path

project = "Whisper research, reproduced and audited"
author = "The asrlib authors"
html_title = project

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_fragments", "_generated/*.html"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2

autodoc_mock_imports = ["torch", "transformers"]  # docstrings can be read without them, in seconds
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them
default_role = "py:obj"
suppress_warnings = ["ref.python"]  # a word in backticks, such as `states`, that is an attribute of several classes

# One file of MathJax, with its fonts inside: the package has 24 MB, this page needs 2.
mathjax = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg.js"
mathjax_path = mathjax.name

html_theme = "sphinx_book_theme"
html_theme_options = {
    "max_navbar_depth": 1,
    "navbar_persistent": [],
    "use_download_button": False,  # each notebook's page links the notebook itself
    "use_fullscreen_button": False,
}
html_context = {"default_mode": "auto"}
html_static_path = ["_static", str(mathjax)]
html_extra_path = ["_generated/extra"]
html_css_files = ["course.css"]
html_js_files = [("course.js", {"defer": "defer"})]
html_copy_source = False
html_use_index = False
html_domain_indices = False
html_show_sphinx = False
