"""Configuration of the documentation: `bash docs/build` makes the site."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import api_pages  # noqa: E402
import pictures  # noqa: E402

import jprune  # noqa: E402

api_pages.write(HERE / "api")
pictures.write(HERE / "_static" / "made")

project = "jprune"
author = "The jprune authors"
project_copyright = author
release = version = jprune.__version__

extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "fieldlist", "smartquotes"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_ext"]
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_title = f"jprune {release}"
html_static_path = ["_static"]
html_css_files = ["jprune.css"]
html_theme_options = {
    "source_repository": "https://github.com/jprune/jprune/",
    "source_branch": "main",
    "source_directory": "docs/",
}

# Links have to lead somewhere. Types in signatures are words, not links.
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*"), ("py:exc", "(?!jprune).*")]
python_maximum_signature_line_length = 72
toc_object_entries_show_parents = "hide"
add_module_names = False
copybutton_exclude = ".linenos, .gp, .go"
pygments_style = "friendly"
