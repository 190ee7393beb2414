"""Pictures by URL: what may be asked, whom, and how long; never an address that is not public.

A server on this machine plays the outside world: names resolve by an injected resolver, and connections go to
it whatever address was resolved, without TLS but for one test with a certificate of its own.
"""

import asyncio
import base64
import contextlib
import ssl

import pytest

from mimic_engine.errors import ImageError, InvalidInputError, TooLargeError
from mimic_engine.server.fetch import Fetcher, is_public

PUBLIC = "93.184.216.34"
URL = "https://pictures.example/a.png"
JORDAN = {"mention": "Jordan", "sentence": "the river in the east"}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class World:
    """A resolver, a network and a server: ``fetch(url)`` in a world where hosts answer ``response``."""

    def __init__(self, response=OK, addresses=(PUBLIC,), **options):
        self.response, self.addresses = response, list(addresses)
        self.options = {"hosts": ["pictures.example"], "timeout_s": 3, "max_bytes": 100} | options
        self.resolved, self.connected, self.requests, self.serving = [], [], [], []

    async def resolve(self, host):
        self.resolved.append(host)
        return self.addresses

    async def connect(self, address, host):
        self.connected.append((address, host))
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def serve(self, reader, writer):
        self.serving.append(asyncio.current_task())
        try:
            await self.answer(reader, writer)
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)

    async def answer(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            if callable(self.response):
                await self.response(writer)
            else:
                writer.write(self.response)
                await writer.drain()
                writer.close()
                await writer.wait_closed()

    async def fetch(self, url=URL):
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            return await Fetcher(**self.options, resolve=self.resolve, connect=self.connect)(url)
        finally:
            server.close()
            for task in self.serving:
                task.cancel()
            await asyncio.wait(self.serving or [asyncio.ensure_future(asyncio.sleep(0))])

    def __call__(self, url=URL):
        return asyncio.run(self.fetch(url))


def test_a_picture_is_fetched_from_the_address_that_was_checked():
    world = World()
    assert world("https://Pictures.Example/a/b.png?size=3&x=%20") == b"hello"
    assert world.resolved == ["pictures.example"]
    assert world.connected == [(PUBLIC, "pictures.example")]
    [request] = world.requests
    assert request.startswith(b"GET /a/b.png?size=3&x=%20 HTTP/1.1\r\nHost: pictures.example\r\n")
    assert b"Accept-Encoding: identity" in request


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://pictures.example/a.png", "must begin with https://, got scheme 'http'"),
        ("file:///etc/passwd", "must begin with https"),
        ("//pictures.example/a.png", "must begin with https"),
        ("", "must begin with https"),
        ("https://other.example/a.png", "host 'other.example' is not among those"),
        ("https://pictures.example.evil.org/", "is not among those"),
        ("https://evil.org/pictures.example", "is not among those"),
        ("https://pictures.example./a.png", "is not among those"),
        ("https:///a.png", "host None"),
        (f"https://{PUBLIC}/a.png", "is not among those"),
        ("https://[::1]/a.png", "is not among those"),
        ("https://[::1/a.png", "not a URL"),
        ("https://me:secret@pictures.example/", "no user name"),
        ("https://pictures.example@evil.org/", "no user name"),
        ("https://evil.org\\@pictures.example/", "ASCII without blanks"),
        ("https://pictures.example:444/", "port must be 443, got 444"),
        ("https://pictures.example:x/", "not a URL"),
        ("https://pictures.example/a b", "without blanks"),
        ("https://pictures.example/a\r\nX-Evil: 1", "without blanks"),
        ("https://pictures.example/\u00e9", "must be ASCII"),
        ("https://pictures.example/" + "a" * 2_048, "at most 2048 characters, got 2073"),
    ],
)
def test_other_urls_are_refused_before_anything_is_resolved(url, words):
    world = World()
    with pytest.raises(InvalidInputError) as refused:
        world(url)
    assert words in str(refused.value)
    assert refused.value.field == "image_url"
    assert world.resolved == []


def test_without_hosts_nothing_is_fetched():
    world = World(hosts=[])
    with pytest.raises(InvalidInputError, match="fetches no pictures"):
        world()
    assert world.resolved == []


NOT_PUBLIC = [
    "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:93.184.216.34", "::127.0.0.1", "::93.184.216.34",
    "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2606:4700::1%eth0", "", "localhost", "0x7f000001", "127.1",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_no_address_that_is_not_public_is_connected_to(address):
    assert not is_public(address)
    for addresses in ([address], [PUBLIC, address], [address, PUBLIC]):
        world = World(addresses=addresses)
        with pytest.raises(ImageError, match="no public address, or others too"):
            world()
        assert world.connected == []


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111"])
def test_public_addresses_are(address):
    assert is_public(address)


def test_a_name_without_address_is_an_error():
    with pytest.raises(ImageError, match="no public address"):
        World(addresses=[])()


def test_a_name_that_changes_its_mind_changes_nothing():
    """The second resolution would be the private one: there is none."""
    world = World()
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    async def rebinding(host):
        world.resolved.append(host)
        return next(answers)

    world.resolve = rebinding
    assert world() == b"hello"
    assert world.resolved == ["pictures.example"]
    assert world.connected == [(PUBLIC, "pictures.example")]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    head = f"HTTP/1.1 {status} Go\r\nlocation: https://pictures.example/b.png\r\ncontent-length: 0\r\n\r\n"
    world = World(head.encode())
    with pytest.raises(ImageError, match=f"pictures.example answered {status}, not 200"):
        world()
    assert len(world.connected) == 1


@pytest.mark.parametrize(
    ("response", "error", "words"),
    [
        (b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", ImageError, "answered 404"),
        (b"HTTP/1.1 204 No\r\n\r\n", ImageError, "answered 204"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\n", TooLargeError, "at most 100 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101, TooLargeError, "got 101 or more"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"41\r\n" + b"x" * 65 + b"\r\n41\r\n" + b"x" * 65, TooLargeError, "got 130"),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nxx", ImageError, "encoding"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", ImageError, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", ImageError, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", ImageError, "RemoteProtocolError"),
        (b"hello", ImageError, "RemoteProtocolError"),
        (b"", ImageError, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000, ImageError, "RemoteProtocolError"),
    ],
)  # fmt: skip
def test_bad_answers_are_clear_errors(response, error, words):
    with pytest.raises(error, match=words) as refused:
        World(response)()
    assert refused.value.field == "image_url"


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
    ],
)
def test_other_ways_to_send_five_bytes(response):
    assert World(response)() == b"hello"


async def _drip_headers(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _drip_body(writer):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def _silence(writer):
    await asyncio.sleep(30)


@pytest.mark.parametrize("behaviour", [_drip_headers, _drip_body, _silence])
def test_slow_hosts_are_given_up_after_the_whole_time(behaviour):
    with pytest.raises(ImageError, match=r"took longer than 0\.2 s|RemoteProtocolError"):
        World(behaviour, timeout_s=0.2)()


async def _endless(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 1_000)
        await writer.drain()


def test_endless_bodies_are_cut_at_the_limit():
    with pytest.raises(TooLargeError, match="at most 100 bytes"):
        World(_endless)()


def test_a_slow_resolver_counts_too():
    world = World(timeout_s=0.05)

    async def slow(host):
        await asyncio.sleep(30)

    world.resolve = slow
    with pytest.raises(ImageError, match="took longer"):
        world()


@pytest.mark.parametrize(
    "failure", [ConnectionRefusedError(111, "secret address"), ssl.SSLError("bad certificate")]
)
def test_what_goes_wrong_on_the_way_is_said_without_details(failure):
    world = World()

    async def fail(address, host):
        raise failure

    world.connect = fail
    with pytest.raises(ImageError, match=f"pictures.example: {type(failure).__name__}$"):
        world()


class Pictures:
    """Stands for a fetcher in the service."""

    def __init__(self, found):
        self.found, self.asked = found, []

    async def __call__(self, url):
        self.asked.append(url)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def test_link_by_url_equals_link_by_bytes(serve, png):
    pictures = Pictures(png)
    client = serve(fetch=pictures)
    by_url = client.post("/v1/link", json={**JORDAN, "image_url": URL})
    by_bytes = client.post("/v1/link", json={**JORDAN, "image": base64.b64encode(png).decode()})
    form = [(name, (None, value)) for name, value in {**JORDAN, "image_url": URL}.items()]
    by_form = client.post("/v1/link", files=form)
    assert by_url.json() == by_bytes.json() == by_form.json()
    assert by_url.json()["has_image"]
    assert pictures.asked == [URL, URL]


def test_fetched_bytes_obey_the_rules_of_pictures(serve, gif, error_of):
    client = serve(fetch=Pictures(gif))
    error_of(client.post("/v1/link", json={**JORDAN, "image_url": URL}), 415, "image_type")
    client = serve(fetch=Pictures(b""))
    error_of(client.post("/v1/link", json={**JORDAN, "image_url": URL}), 422, "invalid_image")


def test_errors_of_fetching_belong_to_their_mention(serve, png, error_of):
    client = serve(fetch=Pictures(TooLargeError("image_url: too large", field="image_url")))
    mentions = [JORDAN, {**JORDAN, "image_url": URL}]
    first, second = client.post("/v1/link:batch", json={"mentions": mentions}).json()["results"]
    assert first["candidates"]
    assert second["error"]["code"] == "too_large"
    assert second["error"]["field"] == "mentions[1].image_url"
    both = {**JORDAN, "image_url": URL, "image": base64.b64encode(png).decode()}
    assert error_of(client.post("/v1/link", json=both), 422, "invalid_input")["field"] == "image_url"


def test_by_default_urls_are_refused(client, error_of):
    error = error_of(client.post("/v1/link", json={**JORDAN, "image_url": URL}), 422, "invalid_input")
    assert "image_url_hosts is empty" in error["message"]
    assert client.app.state.service.batcher.queue.waiting == 0
