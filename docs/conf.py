"""Settings of Sphinx: `make docs` renders the pages of this folder and the docstrings of both packages."""

project = "wae-kernels"
extensions = ["myst_parser", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "python/**.md", "tools/**.md"]
exclude_patterns = ["docs/conf.py", "docs/results"]
myst_heading_anchors = 4  # as GitHub's
suppress_warnings = ["myst.header"]

apidoc_modules = [
    {"path": "../wae_kernels", "destination": "docs/api/wae_kernels"},
    {"path": "../python/wae", "destination": "docs/api/wae"},
]
apidoc_separate_modules = True
autodoc_default_options = {"ignore-module-all": True}  # a name is described where it is defined
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_ivar = True  # attributes have docstrings of their own, which autodoc finds
napoleon_use_rtype = False
