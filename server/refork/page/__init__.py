"""The live page: what a person sees who opens the metrics address in a browser.

One document with everything in it, put together from a few small files when this module is imported, so that the page
works without any network but the connection to the server: through ``kubectl port-forward``, behind a path prefix, in a
cluster that reaches no content network. The browser is told to believe nothing else: the policy in ``HEADERS`` names
the one style sheet and the one script by their digests, and lets the script talk to the server that sent it only.

The page is read-only and knows nothing by itself. It asks ``v1/status`` and listens to ``v1/events``.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

_SCRIPTS = ("words.js", "timeline.js", "processes.js", "connection.js", "page.js")


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Name an inline script or style as a Content-Security-Policy does (Content Security Policy Level 3, 2.3.1)."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _assemble() -> tuple[bytes, dict[str, str]]:
    style = _read("page.css")
    script = "'use strict';\n{\n" + "\n".join(map(_read, _SCRIPTS)) + "}\n"
    page = _read("page.html").replace("/* STYLE */", style).replace("/* SCRIPT */", script)
    policy = (
        "default-src 'none'",
        f"script-src {_digest(script)}",
        f"style-src {_digest(style)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return page.encode(), headers


DOCUMENT, HEADERS = _assemble()
"""The page as it is sent, and the headers that it is sent with."""
