"""Fetcher of the image that a URL names, without becoming a way into the network that the service runs in.

Only https on port 443, only hosts of the allow-list, no credentials, no redirects, a limit on bytes and on
the whole time. The host is resolved once, every address must be a public one, and the connection goes to the
address that was checked: a name that resolves to something else a moment later changes nothing.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import SplitResult, urlsplit

import h11

from mimic_engine._version import __version__
from mimic_engine.errors import ImageError, InvalidInputError, MimicError, TooLargeError

FIELD = "image_url"
PORT = 443
MAX_URL_CHARS = 2_048
MAX_HEADER_BYTES = 16_384
_READ_BYTES = 65_536

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Resolve = Callable[[str], Awaitable[list[str]]]  # host -> its addresses
Connect = Callable[[str, str], Awaitable[Streams]]  # address, host to be certified -> an encrypted connection


class Fetcher:
    """Gets the bytes behind a URL, or says why not.

    Parameters
    ----------
    hosts : names that may be asked; none means that no URL is fetched.
    timeout_s : for everything together, from resolving to the last byte.
    max_bytes : of the body.
    resolve, connect : how; the system's resolver and TLS by default.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        timeout_s: float,
        max_bytes: int,
        *,
        resolve: Resolve | None = None,
        connect: Connect | None = None,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._timeout_s, self._max_bytes = timeout_s, max_bytes
        self._resolve = resolve or _resolve
        self._connect = connect or _connect

    async def __call__(self, url: str) -> bytes:
        """Fetch.

        Raises
        ------
        InvalidInputError
            If the URL is not one that may be fetched.
        TooLargeError
            If the body is over the limit.
        ImageError
            If the host has no public address, cannot be reached, answers anything but 200, or is too slow.
        """
        parts = self._check(url)
        host = str(parts.hostname)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._fetch(parts, host)
        except TimeoutError as error:
            raise ImageError(
                f"{FIELD}: {host} took longer than {self._timeout_s:g} s", field=FIELD
            ) from error
        except (OSError, EOFError, h11.ProtocolError, ValueError) as error:
            if isinstance(error, MimicError):
                raise
            raise ImageError(f"{FIELD}: {host}: {type(error).__name__}", field=FIELD) from error

    def _check(self, url: str) -> SplitResult:
        if not self._hosts:
            raise _refused(
                "this service fetches no pictures (image_url_hosts is empty); send the image itself"
            )
        if len(url) > MAX_URL_CHARS:
            raise _refused(f"at most {MAX_URL_CHARS} characters, got {len(url)}")
        if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            raise _refused("must be ASCII without blanks; percent-encode the rest")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _refused(f"not a URL: {error}") from error
        if parts.scheme != "https":
            raise _refused(f"must begin with https://, got scheme {parts.scheme!r}")
        if parts.username is not None or parts.password is not None:
            raise _refused("must hold no user name and no password")
        if port not in (None, PORT):
            raise _refused(f"port must be {PORT}, got {port}")
        if parts.hostname not in self._hosts:
            raise _refused(f"host {parts.hostname!r} is not among those that this service may ask")
        return parts

    async def _fetch(self, parts: SplitResult, host: str) -> bytes:
        addresses = await self._resolve(host)
        hidden = [address for address in addresses if not is_public(address)]
        if hidden or not addresses:
            raise ImageError(f"{FIELD}: {host} has no public address, or others too", field=FIELD)
        reader, writer = await self._connect(addresses[0], host)
        try:
            return await self._exchange(parts, host, reader, writer)
        finally:
            writer.close()

    async def _exchange(
        self, parts: SplitResult, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
        headers = {
            "Host": host,
            "User-Agent": f"mimic_engine/{__version__}",
            "Accept": "image/jpeg, image/png, image/webp",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = h11.Request(method="GET", target=target, headers=list(headers.items()))
        writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        body = bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(_READ_BYTES))
            elif isinstance(event, h11.Response):
                self._check_response(event, host)
            elif isinstance(event, h11.Data):
                body += event.data
                self._check_length(len(body))
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            elif isinstance(event, h11.ConnectionClosed):
                raise EOFError

    def _check_response(self, response: h11.Response, host: str) -> None:
        if response.status_code != 200:
            raise ImageError(f"{FIELD}: {host} answered {response.status_code}, not 200", field=FIELD)
        headers = {bytes(name): bytes(value) for name, value in response.headers}
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ImageError(f"{FIELD}: {host} answered in an encoding that was not asked for", field=FIELD)
        declared = headers.get(b"content-length", b"0")
        self._check_length(int(declared))  # h11 has made sure of digits

    def _check_length(self, length: int) -> None:
        if length > self._max_bytes:
            message = f"{FIELD}: at most {self._max_bytes} bytes (max_image_bytes), got {length} or more"
            raise TooLargeError(message, field=FIELD)


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet; IPv6 addresses that wrap an IPv4 one are not."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (ip.scope_id is not None or _wraps_ipv4(ip)):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _wraps_ipv4(ip: ipaddress.IPv6Address) -> bool:
    """Mapped, compatible, 6to4, Teredo, NAT64: a translator on the way would unwrap them."""
    nat64 = any(ip in ipaddress.IPv6Network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48"))
    compatible = int(ip) >> 32 == 0
    wrapped = (ip.ipv4_mapped, ip.sixtofour, ip.teredo)
    return nat64 or compatible or any(w is not None for w in wrapped)


def _refused(reason: str) -> InvalidInputError:
    return InvalidInputError(f"{FIELD}: {reason}", field=FIELD)


async def _resolve(host: str) -> list[str]:
    infos = await asyncio.get_running_loop().getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in infos]


async def _connect(address: str, host: str) -> Streams:
    return await asyncio.open_connection(address, PORT, ssl=_tls(), server_hostname=host)


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()  # reads the system's certificates: 20 ms
