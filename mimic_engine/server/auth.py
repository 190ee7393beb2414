"""Authentication: keys from files, compared in constant time; the middleware denies by default.

A key travels as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``. A browser, which cannot send either on
its own, may send it as the password of Basic authentication; since browsers repeat that unasked, even to
please another site, it never counts as the admin key. Keys appear in no log, message or metric.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mimic_engine.errors import ForbiddenError, InvalidInputError, MimicError, UnauthorisedError
from mimic_engine.server.errors import error_response
from mimic_engine.server.settings import Settings

MIN_KEY_CHARS = 16
PROBES = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
ADMIN_PREFIX = "/admin/"
ENTITIES_PREFIX = "/v1/entities/"


@dataclass(frozen=True, slots=True)
class Keys:
    """SHA-256 digests of the keys: ordinary ones, without which nothing is asked for, and the admin's."""

    ordinary: tuple[bytes, ...] = field(default=(), repr=False)
    admin: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def read(cls, settings: Settings) -> Self:
        """Read the files that the settings name.

        Raises
        ------
        InvalidInputError
            If a file cannot be read, holds no key, or one that is too short; says the line, not the key.
        """
        return cls(
            _read_keys("api_keys_file", settings.api_keys_file),
            _read_keys("admin_key_file", settings.admin_key_file),
        )

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Let the request pass, or raise.

        Raises
        ------
        UnauthorisedError
            If a key is needed and none that is known was sent.
        ForbiddenError
            If only the admin may, and the key is not the admin's or there is no admin.
        """
        if _for_admin_only(method, path):
            self._check_admin(headers)
        elif self.ordinary and path not in PROBES:
            sent = _sent_keys(headers, basic=True)
            if not _any_known(sent, (*self.ordinary, *self.admin)):
                raise UnauthorisedError(_complaint(sent))

    def _check_admin(self, headers: Headers) -> None:
        if not self.admin:
            raise ForbiddenError(
                "this needs the admin key, and the service was started without admin_key_file"
            )
        sent = _sent_keys(headers, basic=False)
        if _any_known(sent, self.admin):
            return
        if not sent or not _any_known(sent, self.ordinary):
            raise UnauthorisedError(_complaint(sent))
        raise ForbiddenError("this needs the admin key; the key that was sent is an ordinary one")


class AuthMiddleware:
    """Checks every HTTP request against :class:`Keys` before anything reads its body."""

    def __init__(self, app: ASGIApp, *, keys: Keys) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            try:
                self.keys.check(scope["method"], scope["path"], Headers(scope=scope))
            except MimicError as error:
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _for_admin_only(method: str, path: str) -> bool:
    changes_entity = path.startswith(ENTITIES_PREFIX) and method not in ("GET", "HEAD", "OPTIONS")
    return path.startswith(ADMIN_PREFIX) or changes_entity


def _sent_keys(headers: Headers, *, basic: bool) -> list[bytes]:
    """Give the digests of all keys that a request carries."""
    keys = [headers["x-api-key"]] if "x-api-key" in headers else []
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        keys.append(credentials.strip())
    elif scheme.lower() == "basic" and basic:
        keys.extend(_basic_password(credentials))
    return [hashlib.sha256(key.encode()).digest() for key in keys]


def _basic_password(credentials: str) -> list[str]:
    try:
        return [base64.b64decode(credentials, validate=True).decode().partition(":")[2]]
    except (binascii.Error, ValueError):
        return []


def _any_known(sent: Sequence[bytes], known: Sequence[bytes]) -> bool:
    """Compare every pair in the same time, whichever matches."""
    matches = [hmac.compare_digest(a, b) for a in sent for b in known]
    return any(matches)


def _complaint(sent: Sequence[bytes]) -> str:
    return (
        "the key is not known" if sent else "missing key: send Authorization: Bearer KEY, or X-API-Key: KEY"
    )


def _read_keys(name: str, path: str | None) -> tuple[bytes, ...]:
    if path is None:
        return ()
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InvalidInputError(f"{name}: {path} cannot be read: {reason}", field=name) from error
    digests = []
    for number, line in enumerate(lines, 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if len(key) < MIN_KEY_CHARS or not key.isascii() or " " in key:
            raise InvalidInputError(
                f"{name}: line {number} of {path}: a key is at least {MIN_KEY_CHARS} ASCII characters "
                f"without blanks; this one has {len(key)}",
                field=name,
            )
        digests.append(hashlib.sha256(key.encode()).digest())
    if not digests:
        raise InvalidInputError(f"{name}: {path} holds no key", field=name)
    return tuple(digests)
