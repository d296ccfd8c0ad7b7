"""What the site needs that no plugin does: the docstrings' cross-references, which are Sphinx's, as plain code."""

from __future__ import annotations

import re

_ROLE = re.compile(r":(?:attr|class|exc|func|meth|mod):<code>~?(?:redlock\.)?(?:_\w+\.)?")


def on_page_content(html: str, **_: object) -> str:
    """Called by mkdocs for each page."""
    return _ROLE.sub("<code>", html)
