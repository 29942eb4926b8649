"""`GET /docs`: a plain page that lists the endpoints, without a script or an outside address."""

from html import escape
from inspect import getdoc

from .table import ENDPOINTS

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>adaptive serve</title>
<h1>adaptive serve</h1>
<p>The endpoints of this server; <a href="/openapi.json">openapi.json</a> describes their bodies.</p>
<table><thead><tr><th>Method</th><th>Path</th><th>What it does</th></tr></thead><tbody>
%s
</tbody></table></html>
"""


def docs_page() -> str:
    """Write the page."""
    rows = (
        f"<tr><td>{one.method}</td><td><code>{escape(one.path)}</code></td>"
        f"<td>{escape((getdoc(one.handler) or '').splitlines()[0])}</td></tr>"
        for one in ENDPOINTS
    )
    return PAGE % "\n".join(rows)
