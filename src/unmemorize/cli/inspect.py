"""`unmemorize inspect`."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from unmemorize.cli.app import Model, app, bars
from unmemorize.cli.terminal import errors, say


@app.command()
def inspect(
    model: Model = "testbed",
    images: Annotated[str, typer.Option(help="Folder of training pictures to compare with.")] = "",
    ordinary: Annotated[str, typer.Option(help="File of ordinary prompts to calibrate on.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds a score, and pictures a prompt.")] = 4,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")] = 50,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance scale.")] = 7.5,
    host: Annotated[str, typer.Option(help="Address to serve at; the default is this machine alone.")] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Name that a proxy gives the page; repeatable.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
) -> None:
    """Adjust a prompt on a local web page until it copies nothing."""
    from unmemorize.app.page import is_local, listen, serve
    from unmemorize.jobs.inspect import InspectSpec, open_inspector

    spec = InspectSpec(
        model=model, images=images, ordinary=ordinary, seeds=tuple(range(seeds)), steps=steps, guidance=guidance
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
