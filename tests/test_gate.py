"""Which requests reach the page's server, whatever stands behind."""

from __future__ import annotations

import asyncio

import pytest

from unmemorize.app.gate import LARGEST, Gate

OWN = [(b"host", b"127.0.0.1:7860"), (b"origin", b"http://127.0.0.1:7860")]


async def echo(scope, receive, send):
    """Answers with the body it was given."""
    body = b"".join([(await receive())["body"]]) if scope["method"] == "POST" else b"read"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def failing(scope, receive, send):
    """Answers as a server that lets errors through: a page of its own, then the error."""
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b"Internal Server Error"})
    raise RuntimeError("inside")


def ask(app, method, path, headers=OWN, parts=(b"{}",), hosts=()):
    """Status, headers and body of the answer."""
    sent = []
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(Gate(app, hosts)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/assets/a.js", "/gradio_api/queue/data"])
def test_the_page_is_read(path):
    """Every answer has the policy."""
    status, headers, body = ask(echo, "GET", path)
    assert (status, body) == (200, b"read")
    assert b"connect-src 'self'" in headers[b"content-security-policy"]


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/file=/x", "/gradio_api/proxy=x", "/docs", "//"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_the_rest_is_closed(method, path):
    """Not found, with a line, by any method."""
    assert ask(echo, method, path)[::2] == (404, b"The page has no such address.\n")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"http://127.0.0.1:7860", 200),
        (b"https://127.0.0.1:7860", 200),
        (b"https://outer.example", 200),
        (b"http://127.0.0.1:1", 403),
        (b"http://127.0.0.1:7860.evil.example", 403),
        (b"https://outer.example.evil.example", 403),
        (b"null", 403),
        (b"", 403),
    ],
)
def test_a_question_needs_the_pages_own_origin(origin, status):
    """The address that it was asked at, or a name that was allowed."""
    headers = [OWN[0], (b"origin", origin)]
    assert ask(echo, "POST", "/gradio_api/queue/join", headers, hosts=["outer.example"])[0] == status


def test_bodies_are_whole_and_bounded():
    """A body in parts arrives whole; one byte too many is refused, however it is cut and whatever its length says."""
    whole = (b"a" * (LARGEST // 2),) * 2
    assert ask(echo, "POST", "/gradio_api/queue/join", parts=whole)[::2] == (200, b"".join(whole))
    assert ask(echo, "POST", "/gradio_api/queue/join", parts=(*whole, b"a"))[0] == 413


def test_an_error_is_a_line():
    """Neither the server's own page nor its error comes out."""
    status, headers, body = ask(failing, "GET", "/")
    assert (status, body) == (500, b"The page met an error, which the terminal names. Reload the page.\n")
    assert b"content-security-policy" in headers
