"""The web page of ``memtrain ui``: plain files beside this one, served by the server whose API they use."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse

FOLDER = Path(__file__).with_name("page")
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        *(f"{what} 'none'" for what in ("base-uri", "form-action", "frame-ancestors")),
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Only this server's own files and API; no inline script or style; and no text becomes markup, whatever it says."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def mount_page(app: FastAPI) -> None:
    """Add the page at ``/`` and its files below ``/page/``; neither holds anything that would need a key."""
    files = {file.name: file for file in FOLDER.iterdir() if file.suffix in TYPES}

    def answer(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404, f"the page has no file {name!r}")
        return FileResponse(files[name], media_type=TYPES[files[name].suffix], headers=HEADERS)

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return answer(INDEX)

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> FileResponse:
        return answer(name)
