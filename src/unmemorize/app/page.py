"""The page of `unmemorize inspect`, with Gradio. It loads nothing from elsewhere and reports nothing to anyone."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from unmemorize.app.fragments import gallery, heading, history, verdict, words
from unmemorize.core.errors import MissingExtra, UserError
from unmemorize.jobs.inspect import Inspector, Score

try:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ImportError as error:
    raise MissingExtra("the page", "app") from error

LOCAL = ("127.0.0.1", "localhost")
LIVE = 0.25  # seconds: a model that scores faster than this is asked at every keystroke
LONGEST = 2000  # characters of a prompt; no text encoder reads as many
STYLE = Path(__file__).with_name("style.css")
# Gradio's own scripts are inline and compile templates; nothing may come from, or go to, another origin.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; base-uri 'self'; "
    "form-action 'self'"
)
PROGRESS = gr.Progress()

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    return host in LOCAL


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; at port 0, on one that is free.

    Raises:
        UserError: The address cannot be used.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{host}, port {port}: {reason}: name another --port (0 takes a free one) or --host") from error


def serve(inspector: Inspector, listener: socket.socket) -> None:
    """Serve the page until the process is interrupted."""
    app = FastAPI(openapi_url=None)
    gr.mount_gradio_app(
        app,
        build(inspector),
        path="/",
        css_paths=STYLE,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
    )
    app.add_middleware(_Policy)
    if is_local(listener.getsockname()[0]):
        # Or a page elsewhere could give its own name this address, and read training pictures from the browser.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL))
    # Open pages hold a stream each: without a limit they would hold up the end, and each is logged when it is cut.
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


def build(inspector: Inspector) -> gr.Blocks:
    """The page: components, and what happens when."""
    answers = _Answers(inspector)
    with gr.Blocks(title="unmemorize inspect", analytics_enabled=False) as page:
        gr.HTML(heading(inspector))
        tried, drawn = gr.State([]), gr.State("")
        with gr.Row(elem_id="top"):
            with gr.Column(elem_id="asking"):
                prompt = gr.Textbox(label="Prompt", info="Enter scores it.", max_length=LONGEST, autofocus=True)
                with gr.Row():
                    score = gr.Button("Score", variant="primary", min_width=80)
                    draw = gr.Button("Make pictures", min_width=80)
                guarded = gr.Checkbox(label="With the guard, beside those without it")
                work = gr.HTML(elem_id="work")
            shown = gr.HTML(verdict(None, inspector), elem_id="shown")
        meaning, table, pictures = gr.HTML(), gr.HTML(), gr.HTML()

        # Not Gradio's "once": it would drop an Enter that comes while the last prompt's words are computed.
        answer, last = [shown, meaning, table, tried], "always_last"
        asked = [prompt.submit, score.click]
        gr.on(asked, answers.judge, [prompt, tried], answer, show_progress="hidden", trigger_mode=last)
        if inspector.seconds < LIVE:
            prompt.input(answers.follow, prompt, answer[:2], show_progress="hidden", trigger_mode=last)
        for event, what in ((draw.click, prompt), (guarded.change, drawn)):
            event(
                answers.draw,
                [what, guarded],
                [pictures, drawn],
                show_progress_on=work,
                concurrency_id="pictures",
                trigger_mode=last,
            )
    return page.queue(default_concurrency_limit=1)


class _Answers:
    """What the page's events do. Each yields what is known so far, so that a score does not wait for the words."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector

    def judge(self, prompt: str, tried: list[Score]) -> Iterator[tuple[Any, ...]]:
        """Score a prompt and put it first among those tried."""
        prompt = _clean(prompt)
        if not prompt:
            yield verdict(None, self._inspector), "", gr.skip(), gr.skip()
            return
        score = self._inspector.score(prompt)
        tried = [score, *(other for other in tried if other.prompt != prompt)]
        yield verdict(score, self._inspector), gr.skip(), history(tried), tried
        yield gr.skip(), words(self._inspector.words(prompt)), gr.skip(), gr.skip()

    def follow(self, prompt: str) -> Iterator[tuple[Any, ...]]:
        """Score a prompt while it is typed."""
        for shown, meaning, *_ in self.judge(prompt, []):
            yield shown, meaning

    def draw(self, prompt: str, guarded: bool, progress: gr.Progress = PROGRESS) -> Iterator[tuple[Any, ...]]:
        """Make a prompt's pictures, and those under the guard if asked."""
        prompt = _clean(prompt)
        if not prompt:
            yield gr.skip(), ""
            return

        def report(stage: str, done: int, total: int) -> None:
            progress((done, total), desc=stage, unit="steps")

        plain = self._inspector.pictures(prompt, progress=report)
        yield gallery(plain, None), prompt
        if guarded:
            yield gallery(plain, self._inspector.pictures(prompt, guarded=True, progress=report)), prompt


class _Policy:
    """Adds the content security policy to every response."""

    def __init__(self, app: Callable[[Message, Any, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self._app(scope, receive, guarded)


def _clean(prompt: str) -> str:
    """The prompt without half characters, which no tokenizer takes."""
    return prompt[:LONGEST].encode(errors="replace").decode().strip()
