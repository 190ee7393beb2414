"""``GET /``: a page to try the service, from the files in ``static/``, which are read once at the start.

The page's address always asks again; it names its style and scripts under a hash of their contents, so that
those may be kept for ever.
"""

from __future__ import annotations

import hashlib
from importlib import resources

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mimic_engine.server.docs import Endpoint

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


def routes() -> list[Endpoint]:
    """Routes of the page and its files."""
    folder = resources.files(__package__).joinpath("static")
    files = {name: folder.joinpath(name).read_bytes() for name in MEDIA_TYPES}
    digest = hashlib.blake2b(b"\0".join(files.values()), digest_size=8).hexdigest()
    files[PAGE] = files[PAGE].replace(b'"static/', f'"static/{digest}/'.encode())

    async def page(request: Request) -> Response:
        headers = {**_HEADERS, "Cache-Control": "no-cache", "ETag": f'"{digest}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(files[PAGE], media_type=MEDIA_TYPES[PAGE], headers=headers)

    async def static(request: Request) -> Response:
        asked, name = request.path_params["asked"], request.path_params["name"]
        if name not in files:
            raise HTTPException(404)
        # Another digest: a page of before or after an update asks. It gets what there is, not to be kept.
        kept = "public, max-age=31536000, immutable" if asked == digest else "no-cache"
        return Response(
            files[name], media_type=MEDIA_TYPES[name], headers={**_HEADERS, "Cache-Control": kept}
        )

    return [Endpoint("GET", "/", page), Endpoint("GET", "/static/{asked}/{name}", static)]
