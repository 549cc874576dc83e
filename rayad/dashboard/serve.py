"""`rayad dashboard`: the page on 127.0.0.1, the tools beside it, until it is stopped."""

import asyncio
import re
import secrets
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from aiohttp import web

from rayad import storage
from rayad.dashboard import page
from rayad.dashboard.overview import Overview
from rayad.dashboard.reader import Reader
from rayad.dashboard.tools import Ports, Tools
from rayad.errors import StorageError
from rayad.leftovers import private_folder
from rayad.terminal import say

EVERY_S = 10
"""Seconds from one look at the roots to the next."""
FILE = re.compile(r"index\.(html)|[\w.-]+\.(json|webp|png)")
KINDS = {"html": "text/html", "json": "application/json", "webp": "image/webp", "png": "image/png"}
"""What is served of the folders that the page leads to: names, and types by their endings."""
SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
NOWHERE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
INLINE = "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
REPORT = f"default-src 'none'; img-src 'self' data:; {INLINE}; {NOWHERE}; sandbox allow-scripts allow-downloads"
"""A report's page has its style and script in itself; it sees nothing else that is served here, and loads nothing."""


def show(roots: Sequence[str], port: int, discovery: str) -> None:
    """Show what lies below the roots until SIGINT or SIGTERM.

    Args:
        port: of the page; the tools take those behind it. 0: free ones.
        discovery: the file in which a Ray cluster keeps the list of its nodes' metric ports.

    Raises:
        StorageError: a root does not exist, or cannot be listed.
        OptionError: a port is taken.
    """
    reader = Reader(roots)
    site = Site(roots, reader.look())
    ports = Ports(port)
    number = ports.take()
    with private_folder() as folder:
        tools = Tools(Path(folder), ports, discovery)
        asyncio.run(_show(site, reader, tools, number))


class Site:
    """The page and the files that it leads to."""

    def __init__(self, roots: Sequence[str], overview: Overview) -> None:
        self.roots, self.problem, self.lines = roots, "", list[page.Line]()
        self.overview = overview

    @property
    def application(self) -> web.Application:
        """What aiohttp serves."""
        application = web.Application(middlewares=[_ours])
        application.add_routes([web.get("/", self._page), web.get("/at/{key}/{name}", self._file)])
        return application

    async def _page(self, request: web.Request) -> web.Response:
        nonce = secrets.token_urlsafe(16)
        text = page.render(self.overview, self.roots, self.lines, nonce, self.problem)
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; {NOWHERE}"
        headers = SAFE | {"Content-Security-Policy": policy, "Refresh": str(EVERY_S)}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def _file(self, request: web.Request) -> web.Response:
        key, name = request.match_info["key"], request.match_info["name"]
        folders = {page.key(folder): folder for folder in self.overview.folders}
        if key not in folders or not FILE.fullmatch(name):
            raise web.HTTPNotFound(text="the page leads to no such file")
        try:
            data = await asyncio.to_thread(storage.read_bytes, storage.join(folders[key], name), self.roots)
        except StorageError as error:
            raise web.HTTPNotFound(text=str(error)) from error
        kind = KINDS[name.rsplit(".", 1)[1]]
        return web.Response(body=data, content_type=kind, headers=SAFE | {"Content-Security-Policy": REPORT})


@web.middleware
async def _ours(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]):
    """Refuse a page from elsewhere whose name was made to mean this machine."""
    if request.url.host not in ("127.0.0.1", "localhost"):
        raise web.HTTPForbidden(text="open this at 127.0.0.1")
    return await handler(request)


async def _show(site: Site, reader: Reader, tools: Tools, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(site.application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await _keep_up(site, reader, tools, stop, [page.Line("rayad", "", f"http://127.0.0.1:{port}")])
    finally:
        await tools.stop()
        await runner.cleanup()


async def _keep_up(
    site: Site, reader: Reader, tools: Tools, stop: asyncio.Event, printed_lines: list[page.Line]
) -> None:
    """Look again and again; print every line when it is new."""
    _print(printed_lines)
    while not stop.is_set():
        starting = asyncio.create_task(tools.keep_up(site.overview))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            starting.cancel()
            await asyncio.wait([starting])
            return
        starting.result()
        site.lines = tools.lines
        _print([line for line in site.lines if line not in printed_lines])
        printed_lines += site.lines
        await asyncio.wait([stopping], timeout=EVERY_S)
        try:
            site.overview, site.problem = await asyncio.to_thread(reader.look), ""
        except StorageError as error:
            site.problem = str(error)


def _print(lines: Sequence[page.Line]) -> None:
    for line in lines:
        say(f"{line.tool:12}{' '.join(filter(None, (line.address, line.said)))}")
