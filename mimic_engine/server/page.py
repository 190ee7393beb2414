"""``GET /``: a page to try the service, from the files in ``static/``, which are read once at the start.

The page's address always asks again; it names its style and scripts under a hash of their contents, so that
those may be kept for ever.
"""

from __future__ import annotations

import hashlib
from importlib import resources

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

PAGE = "page.html"
MEDIA_TYPES = {
    PAGE: "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "answer.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def install(app: FastAPI) -> None:
    """Add the page and its files."""
    folder = resources.files(__package__).joinpath("static")
    files = {name: folder.joinpath(name).read_bytes() for name in MEDIA_TYPES}
    digest = hashlib.blake2b(b"\0".join(files.values()), digest_size=8).hexdigest()
    files[PAGE] = files[PAGE].replace(b'"static/', f'"static/{digest}/'.encode())

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        headers = {**_HEADERS, "Cache-Control": "no-cache", "ETag": f'"{digest}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(files[PAGE], media_type=MEDIA_TYPES[PAGE], headers=headers)

    @app.get("/static/{asked}/{name}", include_in_schema=False)
    async def static(asked: str, name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        # Another digest: a page of before or after an update asks. It gets what there is, not to be kept.
        kept = "public, max-age=31536000, immutable" if asked == digest else "no-cache"
        return Response(
            files[name], media_type=MEDIA_TYPES[name], headers={**_HEADERS, "Cache-Control": kept}
        )
