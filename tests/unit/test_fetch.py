"""rayad.serving.fetch: nothing is opened but what the operator allowed, whatever a URL looks like."""

import asyncio
import datetime
import os
import posixpath
import re
import ssl
import threading
import unicodedata
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from rayad import storage
from rayad.errors import OptionError, StorageError
from rayad.serving import fetch as fetching
from rayad.serving.access import Limits
from rayad.serving.fetch import AllowList, Place, fetch, is_public, parsed
from rayad.serving.problems import Problem, of

ALLOWED = AllowList(
    (
        "https://images.example.org/mammo/",
        "https://images.example.org:8443/other",
        "s3://bucket/folder/",
        "memory://bucket/folder",
        "file:///nowhere/in/",
    )
)
SMALL = Limits(max_body_mb=1, body_seconds=5)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder in/ that is allowed, a secret beside it, and links of all kinds."""
    inside = tmp_path / "in"
    (inside / "sub").mkdir(parents=True)
    (inside / "a.png").write_bytes(b"image")
    (inside / "sub" / "b c%20.png").write_bytes(b"named")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "secret").write_bytes(b"secret")
    (inside / "good").symlink_to(inside / "a.png")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "up").symlink_to(tmp_path)
    (inside / "self").symlink_to(inside / "self")
    os.mkfifo(inside / "pipe")
    return tmp_path


def got(url: str, *prefixes: str, limits: Limits = SMALL, lookup: Any = None) -> bytes:
    return asyncio.run(fetch(url, AllowList(prefixes), limits, lookup))


def refused(url: str, *prefixes: str, limits: Limits = SMALL, lookup: Any = None) -> int:
    """The status of the problem that a URL is."""
    with pytest.raises((Problem, StorageError)) as caught:
        got(url, *prefixes, limits=limits, lookup=lookup)
    return of(caught.value).status


# --- what a URL may be


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://images.example.org/mammo/a.png", None),
        ("HTTPS://Images.Example.ORG:443/mammo/a.png", "https://images.example.org/mammo/a.png"),
        ("https://images.example.org/mammo/a.png?X-Amz-Signature=0f&a=/../b", None),
        ("https://images.example.org/mammo/a%20b;v=1.png", None),
        ("https://images.example.org/m%61mmo/a.png", None),
        ("https://images.example.org/mammo", None),
        ("https://images.example.org:8443/other/x", None),
        ("s3://bucket/folder/Ünï code (1).dcm", None),
        ("S3://bucket/folder", "s3://bucket/folder"),
        ("memory://bucket/folder/100%", None),
        ("file:///nowhere/in/a.png", None),
    ],
)
def test_what_lies_below_a_prefix_is_allowed(url: str, expected: str | None) -> None:
    assert ALLOWED.check(url) == (expected or url)


@pytest.mark.parametrize(
    "url",
    [
        # no URL at all, or of another kind
        "", "a.png", "/nowhere/in/a.png", "//images.example.org/mammo/a", "https:images.example.org/mammo/a",
        "https:/images.example.org/mammo/a", "gopher://images.example.org/mammo/", "ftp://images.example.org/mammo/",
        "dict://images.example.org/mammo/", "data:image/png;base64,AA", "javascript://images.example.org/mammo/",
        "simplecache::file:///etc/passwd", "github://a:b@/c", "zip://a::s3://bucket/folder/b",
        "s3://bucket/folder/a::/etc/passwd", "memory://bucket/folder/a::/etc/passwd",
        "s3://bucket/folder/a::file:///etc/passwd", "memory://bucket/folder/a::file:///etc/passwd",
        # another place
        "http://images.example.org/mammo/a", "https://images.example.org:444/mammo/a", "https://images.example.org/",
        "https://images.example.org/mammo2/a", "https://images.example.org/mammo.bak", "https://images.example.org/MAMMO/a",
        "https://example.org/mammo/a", "https://images.example.org.evil.org/mammo/a", "https://evil.org/mammo/a",
        "https://images.example.org:8443/mammo/a", "https://images.example.org:8443/otherwise",
        "s3://bucket/folder2/a", "s3://bucket/", "s3://bucket", "s3://bucket2/folder/a", "s3://BUCKET/folder/a",
        "s3:///bucket/folder/a", "s3://bucket/%66older/a", "memory://bucket/%66older/a", "file:///etc/passwd",
        # a user, a fragment, a strange host
        "https://images.example.org@evil.org/mammo/a", "https://evil.org@images.example.org/mammo/a",
        "https://me:pw@images.example.org/mammo/a", "https://evil.org#@images.example.org/mammo/a",
        "https://evil.org?@images.example.org/mammo/a", "https://images.example.org\\@evil.org/mammo/a",
        "https://evil.org\\.images.example.org/mammo/a", "https://images.example.org#/mammo/a",
        "https://images.example.org/mammo/a#b", "https://images.example.org%2eevil.org/mammo/a",
        "https://images.example.org%00.evil.org/mammo/a", "https://images.example.org\x00/mammo/a",
        "https://images.example.org./mammo/a", "https://images。example。org/mammo/a", "https://\uff49mages.example.org/mammo/a",
        "https://\u0456mages.example.org/mammo/a", "https://images.example.org:/mammo/a", "https://images.example.org:x/mammo/a",
        "https://images.example.org:0/mammo/a", "https://images.example.org:99999/mammo/a",
        "https://images.example.org:443:80/mammo/a", "https://images.example.org:\u0664\u0664\u0663/mammo/a",
        "https:// images.example.org/mammo/a", " https://images.example.org/mammo/a", "https://images.example.org/mammo/a\n",
        "https://images.example.org/mammo/\r\nHost: evil.org", "https://images.example.org/mammo/a b",
        "https://images.example.org/mammo/a?b c", "https://images.example.org/mammo/a?b\r\nX: 1",
        "https://images.example.org/mammo/" + "a" * 2048,
        # out of the folder
        "https://images.example.org/mammo/../admin", "https://images.example.org/mammo/./a",
        "https://images.example.org/mammo/%2e%2e/admin", "https://images.example.org/mammo/%2E./admin",
        "https://images.example.org/mammo/%252e%252e/admin", "https://images.example.org/mammo/%25252e%25252e/admin",
        "https://images.example.org/mammo/..%2fadmin", "https://images.example.org/mammo/%2e%2e%5cadmin",
        "https://images.example.org/mammo/..;/admin", "https://images.example.org/mammo/..;a=b/admin",
        "https://images.example.org/mammo/..\\admin", "https://images.example.org/mammo//admin",
        "https://images.example.org//mammo/a", "https://images.example.org/mammo%2fa", "https://images.example.org/mammo/%00",
        "https://images.example.org/mammo/%0d%0aHost:%20evil.org", "https://images.example.org/mammo/%c0%ae%c0%ae/admin",
        "https://images.example.org/mammo/%ef%bc%8e%ef%bc%8e/admin", "https://images.example.org/mammo/%e2%80%a5/admin",
        "https://images.example.org/mammo/a%ef%bc%8fb", "https://images.example.org/admin/../mammo/a",
        "s3://bucket/folder/../a", "s3://bucket/folder/%2e%2e/a", "s3://bucket/folder//a", "s3://bucket/folder/..",
        "s3://bucket/folder/a?versionId=1", "s3://bucket/folder/a#b", "s3://bucket/folder/\x00", "s3://bucket:80/folder/a",
        "s3://user@bucket/folder/a", "s3://arn:aws:s3:::bucket/folder/a",
        "file://nowhere/in/a", "file://localhost/nowhere/in/a", "file:/nowhere/in/a", "file:////nowhere/in/a",
        "file:///nowhere/in/../secret", "file:///nowhere/in/%2e%2e/secret", "file:///nowhere/in\x00/a", "file:///nowhere/inside",
        "file:///nowhere/%69n/a", "file:///nowhere/in/..\\..\\secret", "file:///nowhere/in/~/a/..", "file:///nowhere/in?",
    ],
)  # fmt: skip
def test_all_else_is_refused(url: str) -> None:
    with pytest.raises(Problem) as caught:
        ALLOWED.check(url)
    assert caught.value.status in (403, 422)
    assert "secret" not in str(caught.value)


def test_nothing_is_allowed_by_default() -> None:
    for url in ("https://images.example.org/mammo/a.png", "s3://bucket/folder/a", "file:///etc/passwd", "memory://a/b"):
        with pytest.raises(Problem, match="not allowed"):
            AllowList().check(url)


@pytest.mark.parametrize(
    "prefix",
    ["", "/data/in", "https://", "https:///mammo/", "s3://", "https://*.example.org/", "https://ü.org/", "s3://a/../b",
     "https://a.org/?b=", "https://2130706433/", "http://0x7f.1/", "http://127.1/", "http://0177.0.0.1/", "ftp://a/"],
)  # fmt: skip
def test_a_prefix_is_a_place(prefix: str) -> None:
    with pytest.raises(OptionError, match="prefix of URLs to allow"):
        AllowList((prefix,))


SPELLINGS = [
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "017700000001", "0177.0.0.1", "127.0.0.1.", "0",
    "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[::1%25lo]",
    "localhost.", "LOCALHOST", "①②⑦.⓪.⓪.①", "169.254.169.254", "127.0.0.1:80@a.org",
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_an_address_is_another_name_of_an_allowed_host(spelling: str) -> None:
    with pytest.raises(Problem):
        AllowList(("http://a.org/", "http://10.0.0.1/")).check(f"http://{spelling}/x")


def test_an_address_has_one_form() -> None:
    allow = AllowList(("http://[2001:db8::1]:8080/in/", "http://192.0.2.7/"))
    assert allow.check("http://[2001:DB8:0:0:0:0:0:1]:8080/in/a") == "http://[2001:db8::1]:8080/in/a"
    assert allow.check("http://192.0.2.7:80/a") == "http://192.0.2.7/a"


NASTY = st.sampled_from(
    ["/", "//", "\\", "..", ".", "%2e", "%2E", "%252e", "%2f", "%5c", "%25", "%00", ";", "..;", "in", "mammo", "a",
     "up", "link", "inside", "secret", "?", "#", "@", ":", "::", "\uff5e",
     "\u2025", "\uff0e", "\uff0f", " ", "%20", "%ff", "%c0%ae",
     "~", "*"]
)  # fmt: skip
PATHS = st.lists(NASTY, max_size=8).map("".join)


def readings(path: str) -> set[str]:
    """What a path may become in the hands of servers that decode it, once or more."""
    found = {path}
    for _ in range(4):
        found |= {unquote(one) for one in found}
    found |= {unicodedata.normalize("NFKC", one) for one in found}
    found |= {one.replace("\\", "/") for one in found}
    return found | {re.sub(r";[^/]*", "", one) for one in found}


@given(PATHS, PATHS)
@example("", "/mammo/..%252f..")
def test_an_allowed_page_never_leaves_its_prefix(authority: str, path: str) -> None:
    url = f"https://images.example.org{authority}/mammo/{path}"
    try:
        taken = AllowList(("https://images.example.org/mammo/",)).check(url)
    except Problem:
        return
    parts = urlsplit(taken)
    assert (parts.scheme, parts.hostname, parts.port, parts.username) == ("https", "images.example.org", None, None)
    for reading in readings(parts.path):
        assert posixpath.normpath(reading).startswith("/mammo")
        assert not posixpath.normpath(reading).startswith("/mammo.")
        assert "\x00" not in reading


@given(path=PATHS)
def test_an_allowed_object_never_leaves_its_prefix(path: str) -> None:
    try:
        taken = AllowList(("memory://bucket/in",)).check(f"memory://bucket/in{path}")
    except Problem:
        return
    key = storage.fsspec.url_to_fs(taken)[1]
    assert key == "/bucket/in" or key.startswith("/bucket/in/")
    assert posixpath.normpath(key) == key.rstrip("/")


def test_an_allowed_file_never_leaves_its_prefix(tree: Path) -> None:
    allow, top = AllowList((f"file://{tree}/in",)), os.path.realpath(tree / "in")

    @given(PATHS)
    def never(path: str) -> None:
        try:
            taken = allow.check(f"file://{tree}/in{path}")
        except Problem:
            return
        real = os.path.realpath(taken.removeprefix("file://"))
        assert real == top or real.startswith(top + "/")

    never()


@given(st.text())
def test_any_text_is_a_place_or_a_problem(text: str) -> None:
    try:
        place = parsed(text)
    except Problem:
        return
    assert parsed(place.url) == place


# --- addresses


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("127.255.255.254", False),
        ("0.0.0.0", False), ("10.0.0.1", False), ("172.16.0.1", False), ("192.168.1.1", False),
        ("169.254.169.254", False), ("100.100.100.200", False), ("168.63.129.16", False),
        ("192.0.0.192", False), ("198.18.0.1", False),
        ("224.0.0.1", False), ("240.0.0.1", False), ("255.255.255.255", False), ("192.0.2.1", False), ("::", False),
        ("::1", False), ("fe80::1", False), ("fe80::1%eth0", False), ("fd00:ec2::254", False), ("fec0::1", False),
        ("ff02::1", False), ("2001:db8::1", False), ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", False),
        ("::127.0.0.1", False), ("64:ff9b::7f00:1", False), ("64:ff9b:1::1", False), ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False), ("localhost", False), ("", False), ("2130706433", False),
    ],
)  # fmt: skip
def test_public_addresses_are_those_of_the_internet(address: str, public: bool) -> None:
    assert is_public(address) is public


def answering(*addresses: Sequence[str]) -> tuple[Callable[[str, int], Any], list[str]]:
    """A resolver that answers each time with the next addresses, and whom it was asked for."""
    left, asked = list(addresses), list[str]()

    async def lookup(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return left.pop(0)

    return lookup, asked


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "169.254.169.254", "::ffff:127.0.0.1", "10.1.2.3"])
def test_a_name_of_a_private_address_is_refused(address: str) -> None:
    lookup, asked = answering([address])
    assert refused("http://images.example.org/a", "http://images.example.org/", lookup=lookup) == 403
    assert asked == ["images.example.org"]


def test_one_private_address_of_several_is_enough() -> None:
    lookup, _ = answering(["8.8.8.8", "127.0.0.1"])
    assert refused("http://images.example.org/a", "http://images.example.org/", lookup=lookup) == 403


def test_what_was_checked_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: 127.0.0.2 stands for a public address, and at 127.0.0.1 is what the attacker wants."""
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.2")
    lookup, asked = answering(["127.0.0.2"], ["127.0.0.1"], ["127.0.0.1"])

    async def attack() -> None:
        async with site("127.0.0.2", body=b"public") as port, site("127.0.0.1", port=port, body=b"secret"):
            url, allow = f"http://rebinds.org:{port}/whole", AllowList((f"http://rebinds.org:{port}/",))
            assert await fetch(url, allow, SMALL, lookup) == b"public"
            assert asked == ["rebinds.org"]
            with pytest.raises(Problem, match="not a public one"):
                await fetch(url, allow, SMALL, lookup)

    asyncio.run(attack())


# --- pages


@asynccontextmanager
async def site(
    host: str = "127.0.0.1", port: int = 0, body: bytes = b"image", tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """The port of a web server."""

    async def whole(request: web.Request) -> web.Response:
        assert "Cookie" not in request.headers
        return web.Response(body=body, headers={"Set-Cookie": "a=b"})

    async def endless(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(bytes(100_000))
            await asyncio.sleep(0)

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(2)
        return web.Response()

    async def packed(request: web.Request) -> web.Response:
        return web.Response(body=b"x", headers={"Content-Encoding": "gzip"})

    async def moved(request: web.Request) -> web.Response:
        raise web.HTTPFound("/whole")

    async def status(request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["status"]))

    async def asked(request: web.Request) -> web.Response:
        return web.Response(text=request.raw_path)

    app = web.Application()
    routes = {"/whole": whole, "/endless": endless, "/slow": slow, "/packed": packed, "/moved": moved}
    for path, handler in {**routes, "/status/{status}": status, "/asked/{rest:.*}": asked}.items():
        app.router.add_get(path, handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    at = web.TCPSite(runner, host, port, ssl_context=tls)
    await at.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def from_site(path: str, limits: Limits = SMALL, body: bytes = b"image", host: str = "127.0.0.1") -> bytes:
    async def ask() -> bytes:
        async with site(body=body) as port:
            return await fetch(f"http://{host}:{port}{path}", AllowList((f"http://{host}:{port}/",)), limits)

    return asyncio.run(ask())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_this_machine_is_read_where_the_operator_names_it(host: str) -> None:
    assert from_site("/whole", host=host) == b"image"


def test_the_path_is_sent_as_it_came() -> None:
    assert from_site("/asked/a%20b;c=1?d=%2F&e=f") == b"/asked/a%20b;c=1?d=%2F&e=f"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/moved", 502),
        ("/packed", 502),
        ("/endless", 413),
        ("/status/404", 404),
        ("/status/410", 404),
        ("/status/401", 403),
        ("/status/500", 502),
        ("/status/204", 502),
    ],
)
def test_an_answer_that_is_no_image_is_a_problem(path: str, status: int) -> None:
    with pytest.raises(Problem) as caught:
        from_site(path)
    assert caught.value.status == status


def test_a_page_has_a_size_and_a_time() -> None:
    assert len(from_site("/whole", body=bytes(1_000_000))) == 1_000_000
    with pytest.raises(Problem, match="more than 1 MB"):
        from_site("/whole", body=bytes(1_000_001))
    with pytest.raises(Problem, match=r"not here within 0\.2 s") as caught:
        from_site("/slow", Limits(body_seconds=0.2))
    assert caught.value.status == 504


def test_a_host_that_is_not_there_is_a_problem() -> None:
    assert refused("http://127.0.0.1:1/a", "http://127.0.0.1:1/") == 502
    lookup, _ = answering([])
    assert refused("http://nobody.org/a", "http://nobody.org/", lookup=lookup) == 502


@pytest.fixture
def certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's side of TLS with a certificate for localhost, which this machine trusts."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "certificate").write_bytes(made.public_bytes(pem))
    (tmp_path / "key").write_bytes(key.private_bytes(pem, kind, serialization.NoEncryption()))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    return context


def test_the_certificate_must_be_the_hosts(certified: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(host: str) -> bytes:
        async with site(tls=certified) as port:
            return await fetch(f"https://{host}:{port}/whole", AllowList((f"https://{host}:{port}/",)), SMALL)

    assert asyncio.run(ask("localhost")) == b"image"
    with pytest.raises(Problem, match="cannot be reached"):
        asyncio.run(ask("127.0.0.1"))
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(Problem, match="cannot be reached"):
        asyncio.run(ask("localhost"))


# --- files and objects


def test_files_of_the_folder_are_read(tree: Path) -> None:
    for name, content in (("a.png", b"image"), ("good", b"image"), ("sub/b c%20.png", b"named")):
        assert got(f"file://{tree}/in/{name}", f"file://{tree}/in/") == content


@pytest.mark.parametrize(
    ("name", "status"),
    [("link", 403), ("up/secret", 403), ("up/in/link", 403), ("up/inside/secret", 403), ("none", 404), ("pipe", 422),
     ("sub", 422), ("self", 403), ("a.png/b", 403), ("", 422)],
)  # fmt: skip
def test_links_lead_out_of_no_folder(tree: Path, name: str, status: int) -> None:
    assert refused(f"file://{tree}/in/{name}", f"file://{tree}/in/") == status


def test_a_link_back_into_the_folder_is_fine(tree: Path) -> None:
    assert got(f"file://{tree}/in/up/in/a.png", f"file://{tree}/in") == b"image"


def test_a_folder_that_is_a_link_is_where_it_leads(tree: Path) -> None:
    assert got(f"file://{tree}/in/up/secret", f"file://{tree}/in/up/") == b"secret"


@pytest.mark.parametrize("name", ["in/link", "in/up/secret"])
def test_what_becomes_a_link_after_the_check_is_not_opened(tree: Path, name: str) -> None:
    with pytest.raises(Problem, match="cannot be read"):
        fetching._file(Place("file", "", f"{tree}/{name}"), 100)


def test_a_file_that_turns_into_a_link_all_the_time_never_tells_the_secret(tree: Path) -> None:
    """A race that is lost once in a thousand turns would be seen here."""
    place, over = tree / "in" / "turning", threading.Event()

    def turn() -> None:
        while not over.is_set():
            for make in (lambda: (tree / "in" / "new").symlink_to(tree), lambda: (tree / "in" / "new").mkdir()):
                make()
                if place.is_symlink():
                    place.unlink()
                elif place.exists():
                    place.rmdir()
                os.rename(tree / "in" / "new", place)

    thread = threading.Thread(target=turn)
    thread.start()
    allow, seen = AllowList((f"file://{tree}/in",)), set[int]()
    try:
        for _ in range(3000):
            try:
                taken = allow.place(f"file://{tree}/in/turning/secret")
                seen.add(len(fetching._file(taken, 100)))
            except Problem as problem:
                seen.add(problem.status)
    finally:
        over.set()
        thread.join()
    assert seen <= {403, 404}


def test_files_and_objects_have_a_size(tree: Path) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    (tree / "in" / "large").write_bytes(bytes(1_000_001))
    storage.write_bytes(f"{root}/large", bytes(1_000_001))
    storage.write_bytes(f"{root}/small", bytes(1_000_000))
    assert refused(f"file://{tree}/in/large", f"file://{tree}/in/") == 413
    assert refused(f"{root}/large", root) == 413
    assert refused(f"{root}/none", root) == 404
    assert len(got(f"{root}/small", root)) == 1_000_000
    assert refused("file:///dev/zero", "file:///dev/") == 422


def test_what_is_written_stays_in_its_folder_too(tree: Path) -> None:
    allow = AllowList((f"file://{tree}/in/",))
    assert allow.check(f"file://{tree}/in/new/results") == f"file://{os.path.realpath(tree)}/in/new/results"
    for name in ("in/up/new", "in/link", "in/up/in/../new", "inside/new", "new"):
        with pytest.raises(Problem):
            allow.check(f"file://{tree}/{name}")
