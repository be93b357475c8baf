"""What reaches the page's server: the routes that the page uses, in small requests, from the page itself."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

# Everything else that Gradio serves is closed: uploads, files, proxied addresses, its API without the page, and more.
READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/(assets|static|svelte)/.+|/gradio_api/(startup-events|theme\.css|"
    r"heartbeat/[\w-]+|queue/data)"
)
WRITTEN = re.compile(r"/gradio_api/(queue/join|cancel|reset)/?")
LARGEST = 1 << 16  # bytes of a request's body: a prompt is at most 2000 characters
# Gradio's own scripts are inline and compile templates; nothing may come from, or go to, another origin.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; base-uri 'self'; "
    "form-action 'self'"
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Refused(Exception):
    """A request that is not passed on: its status and a line that says why."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class Gate:
    """Passes on what the page asks for, refuses the rest with a line, and adds the content security policy.

    `hosts` are names other than the address itself that the page is reached by.
    """

    def __init__(self, app: App, hosts: Collection[str] = ()) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _with_policy(send))

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        started = broken = False

        async def watched(message: Message) -> None:
            nonlocal started, broken
            broken = broken or (message["type"] == "http.response.start" and message["status"] == 500)
            if not broken:
                started = True
                await send(message)

        try:
            await self._app(scope, await self._checked(scope, receive), watched)
        except Refused as refused:
            await _say(send, refused.status, str(refused))
        except Exception as error:
            broken = True
            logging.getLogger(__name__).error("%s: %r", scope["path"], error)
        if broken and not started:
            await _say(send, 500, "The page met an error, which the terminal names. Reload the page.")

    async def _checked(self, scope: Message, receive: Receive) -> Receive:
        """What the request is read from, once it is known to be one of the page's own."""
        path, method = scope["path"], scope["method"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if method in ("GET", "HEAD"):
            if not READ.fullmatch(path):
                raise Refused(404, "The page has no such address.")
            return receive
        if method != "POST" or not WRITTEN.fullmatch(path):
            raise Refused(404, "The page has no such address.")
        if not self._is_own(headers.get("origin", ""), headers.get("host", "")):
            raise Refused(403, "Only the page itself may ask this.")
        return await _small(receive)

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            address = urlsplit(origin)
            return bool(address.netloc) and (address.netloc == host or address.hostname in self._hosts)
        except ValueError:  # a malformed address
            return False


async def _small(receive: Receive) -> Receive:
    """The body, read whole and given again."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "The request ended early.")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > LARGEST:
            raise Refused(413, f"The request has more than {LARGEST} bytes.")
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_policy(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
        await send(message)

    return guarded


async def _say(send: Send, status: int, line: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{line}\n".encode()})
