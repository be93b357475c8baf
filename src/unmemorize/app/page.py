"""The page of `unmemorize inspect`, with Gradio. It loads nothing from elsewhere and reports nothing to anyone."""

from __future__ import annotations

import html
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmemorize.app.fragments import gallery, heading, history, verdict, words
from unmemorize.app.gate import Gate
from unmemorize.core.errors import MissingExtra, UserError
from unmemorize.stages.inspect import Inspector, Score

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
REMEMBERED = 100  # prompts tried, on a page
WAITING = 32  # questions in the queue, over all pages
CONNECTIONS = 128  # an open page holds two
STYLE = Path(__file__).with_name("style.css")
PROGRESS = gr.Progress()


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    return host in LOCAL


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; at port 0, on one that is free.

    Raises:
        UserError: The address cannot be used.
    """
    try:
        host.encode("idna")  # what cannot be a name ends here, and not with a socket that is left open
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{host}, port {port}: {reason}: name another --port (0 takes a free one) or --host") from error


def serve(inspector: Inspector, listener: socket.socket, *, hosts: Collection[str] = ()) -> None:
    """Serve the page until the process is interrupted; `hosts` are names that a proxy gives it."""
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
    if hosts or is_local(listener.getsockname()[0]):
        # Or a page elsewhere could give its own name this address, and read training pictures from the browser.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, *hosts])
    # Open pages hold a stream each: without a limit they would hold up the end, and each is logged when it is cut.
    config = uvicorn.Config(
        Gate(app, hosts), log_level="critical", timeout_graceful_shutdown=1, limit_concurrency=CONNECTIONS
    )
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
        submitted = [prompt.submit, score.click]
        gr.on(submitted, answers.judge, [prompt, tried], answer, show_progress="hidden", trigger_mode=last)
        if inspector.seconds < LIVE:
            prompt.input(answers.follow, prompt, answer[:2], show_progress="hidden", trigger_mode=last)
        for event, drawn_from in ((draw.click, prompt), (guarded.change, drawn)):
            event(
                answers.draw,
                [drawn_from, guarded],
                [pictures, drawn],
                show_progress_on=work,
                concurrency_id="pictures",
                trigger_mode=last,
            )
    queued: gr.Blocks = page.queue(default_concurrency_limit=1, max_size=WAITING)
    return queued


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
        with _one_line():
            score = self._inspector.score(prompt)
        tried = [score, *(other for other in tried if other.prompt != prompt)][:REMEMBERED]
        yield verdict(score, self._inspector), gr.skip(), history(tried), tried
        with _one_line():
            explained = self._inspector.words(prompt)
        yield gr.skip(), words(explained), gr.skip(), gr.skip()

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

        with _one_line():
            plain = self._inspector.pictures(prompt, progress=report)
        where = self._inspector.spec.regions
        yield gallery(plain, None, where), prompt
        if guarded:
            with _one_line():
                held = self._inspector.pictures(prompt, guarded=True, progress=report)
            yield gallery(plain, held, where), prompt


@contextmanager
def _one_line() -> Iterator[None]:
    """Whatever goes wrong is a line on the page, without a traceback in the terminal."""
    try:
        yield
    except Exception as error:
        line = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise gr.Error(html.escape(line), print_exception=False) from error


def _clean(prompt: str) -> str:
    """The prompt without half characters, which no tokenizer takes."""
    return prompt[:LONGEST].encode(errors="replace").decode().strip()
