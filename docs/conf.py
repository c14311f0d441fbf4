"""How Sphinx builds the documentation: scripts/docs."""

import re
from importlib.metadata import version as version_of
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.application import Sphinx

project = "gru_jax"
author = "The gru_jax authors"
copyright = "The gru_jax authors, Apache-2.0"
version = release = version_of("gru_jax")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton"]
exclude_patterns = ["**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "gru_jax"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = html_copy_source = False
html_math_renderer = "mathml"
pygments_style, pygments_dark_style = "friendly", "github-dark"

nb_execution_mode = "off"  # the notebooks keep their outputs, and the tests run them
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

autodoc_typehints = "none"  # signatures have them, and docstrings say more
autodoc_preserve_defaults = True
napoleon_numpy_docstring = napoleon_use_rtype = False
default_role = "code"  # `x` in a docstring is code


def keep_lines(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Marks a docstring's indented formulas and tables as literal, so that they keep their lines."""
    kept: list[str] = []
    in_text = True  # and not in a section, which is indented as well
    for i, line in enumerate(lines):
        if re.match(r"[A-Z][a-z]+:$", line):
            in_text = False
        elif line and not line.startswith(" "):
            in_text = True
        if in_text and re.match(r" {4}\S", line) and i and not lines[i - 1].strip():
            kept += ["::", ""]
        kept.append(line)
    lines[:] = kept


def link_notebooks(app: Sphinx, page: str, text: list[str]) -> None:
    """Leads links that work in the repository, to ../notebooks, to the pages made of the notebooks."""
    text[0] = re.sub(r"\[([^]]*)\]\(\.\./(notebooks/\w+)\.ipynb\)", r"{doc}`\1 <\2>`", text[0])


def mathml(display: str) -> tuple[Any, None]:
    """Renders a formula as MathML when the pages are built: neither a script nor a network is needed to read it."""

    def visit(self: Any, node: Any) -> None:
        latex = re.sub(r"\b(begin|end)\{aligned\}", r"\1{align*}", node.astext())
        self.body.append(convert(latex, display=display))
        raise SkipNode

    return visit, None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=mathml("inline"), block_renderers=mathml("block"))
    app.connect("source-read", link_notebooks)
    app.connect("autodoc-process-docstring", keep_lines, priority=400)  # before napoleon reads the sections
