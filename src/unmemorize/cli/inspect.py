"""`unmemorize inspect`."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from unmemorize.cli.app import Guidance, Model, Ordinary, Pictures, References, Steps, app, bars
from unmemorize.cli.terminal import errors, say
from unmemorize.core.specs import InspectSpec


@app.command()
def inspect(
    model: Model = "testbed",
    references: References = "",
    ordinary: Ordinary = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds a score.")] = 4,
    pictures: Pictures = 4,
    steps: Steps = 0,
    guidance: Guidance = None,
    host: Annotated[str, typer.Option(help="Address to serve at; the default is this machine alone.")] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Name that a proxy gives the page; repeatable.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
) -> None:
    """Adjust a prompt on a local web page until it copies nothing."""
    from unmemorize.app.page import is_local, listen, serve
    from unmemorize.jobs.inspect import open_inspector

    spec = InspectSpec(
        model=model,
        references=references,
        ordinary=ordinary,
        seeds=seeds,
        pictures=pictures,
        steps=steps,
        guidance=guidance,
    )
    with listen(host, port) as listener:
        with bars() as progress:
            inspector = open_inspector(spec, progress)
        if not is_local(host):
            say("Whoever reaches this address can use the page: it asks for no password.", to=errors, style="yellow")
        address = f"[{host}]" if ":" in host else host
        print(f"http://{address}:{listener.getsockname()[1]}", flush=True)
        say("Ctrl+C stops it.")
        with suppress(KeyboardInterrupt):
            serve(inspector, listener, hosts=allowed_host or ())
