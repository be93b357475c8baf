"""`unmemorize inspect`."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from annotated_types import Interval

from unmemorize.cli.app import EXPLAIN, Json, command, option
from unmemorize.cli.checks import check
from unmemorize.cli.terminal import errors, print_json, say, working
from unmemorize.core.specs import InspectSpec


@command(
    EXPLAIN, "unmemorize inspect", "unmemorize inspect MODEL --references training-pictures/ --ordinary captions.txt"
)
def inspect(
    spec: InspectSpec,
    *,
    host: Annotated[str, option("Address to serve at; the default is this machine alone.")] = "127.0.0.1",
    allowed_host: Annotated[tuple[str, ...], option("Name that a proxy gives the page; repeatable.")] = (),
    port: Annotated[int, Interval(ge=0, le=65535), option("Port; 0 takes a free one.")] = 7860,
    json: Json = False,
) -> None:
    """Adjust a prompt on a local web page until it copies nothing."""
    check(spec)

    from unmemorize.app.page import is_local, listen, serve
    from unmemorize.stages.inspect import open_inspector

    with listen(host, port) as listener:
        with working() as progress:
            inspector = open_inspector(spec, progress)
        if not is_local(host):
            say("Whoever reaches this address can use the page: it asks for no password.", to=errors, style="yellow")
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        if json:
            print_json({"address": address})
        else:
            print(address, flush=True)
        say("Ctrl+C stops it.", to=errors)
        with suppress(KeyboardInterrupt):
            serve(inspector, listener, hosts=allowed_host)
