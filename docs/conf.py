"""Sphinx reads the pages as they are (MyST) and the docstrings (autodoc). Neither building nor reading fetches anything."""

project = "Idiolect"
copyright = "the authors of Idiolect, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc"]

myst_heading_anchors = 4  # the anchors that GitHub makes
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}

highlight_language = "none"  # commands and formulas; Python and TOML blocks say so

html_theme = "furo"  # light and dark, fonts of the system
html_title = "Idiolect"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["pages.css"]
