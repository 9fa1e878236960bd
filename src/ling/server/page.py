"""The page to chat in: one file, and the policy that keeps it from loading or sending anything elsewhere."""

import base64
import hashlib
import re
from pathlib import Path


def read_page() -> tuple[bytes, dict[str, str]]:
    """Return the page and the headers to serve it with.

    Its scripts and styles are named by their hashes, so nothing else runs in it, whatever a model writes.
    Its requests go to `v1/` beside it: the address it is served at ends with a slash.
    """
    page = Path(__file__).with_name("page.html").read_bytes()
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(page, rb"<script>(.*?)</script>"),
        "style-src": _hashes(page, rb"<style>(.*?)</style>"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'self'",
    }
    return page, {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {sources}" for name, sources in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hashes(page: bytes, pattern: bytes) -> str:
    found = re.findall(pattern, page, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found)
