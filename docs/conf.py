from mi_audit import __version__

project = "mi-audit"
author = "The mi-audit developers"
copyright = author
release = version = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"mi-audit {release}"
myst_heading_anchors = 3
myst_links_external_new_tab = False
