"""`unmemorize methods`: what there is, this package's and that of others."""

from __future__ import annotations

from typing import Annotated, Any

from rich.table import Table

from unmemorize.cli.app import TESTBED, Json, command, option
from unmemorize.cli.terminal import add_row, out, print_json, say
from unmemorize.core.errors import UserError


@command(TESTBED, "unmemorize methods", "unmemorize methods wanda")
def methods(
    name: Annotated[str, option("One method, to see its settings.")] = "",
    *,
    json: Json = False,
) -> None:
    """List every method by kind: what it is, where it comes from, what it needs and costs, and its settings."""
    from unmemorize.core.methods import GROUPS, describe
    from unmemorize.core.methods import methods as known

    described = []
    for kind in GROUPS:
        described += [describe(cls) for cls in known(kind).values() if name in ("", cls.name)]
    if not described:
        raise UserError(f"{name}: no such method: unmemorize methods lists them")
    if json:
        print_json({"methods": described})
    elif name:
        for facts in described:
            _print_method(facts)
    else:
        _print_all(described)


def _print_all(described: list[dict[str, Any]]) -> None:
    for kind in dict.fromkeys(facts["kind"] for facts in described):
        table = Table(box=None, pad_edge=False, show_header=False, title=kind, title_justify="left")
        for facts in described:
            if facts["kind"] == kind:
                add_row(table, facts["name"], f"{facts['summary']} ({facts['paper']})")
        out.print(table, "")


def _print_method(facts: dict[str, Any]) -> None:
    say(f"{facts['name']} ({facts['kind']}): {facts['summary']}")
    say(f"paper: {facts['paper']}")
    say(f"needs: {', '.join(facts['needs']) or 'nothing but prompts'}")
    say(f"cost: {facts['cost']}")
    if not facts["settings"]:
        return
    table = Table("setting", "default", "type", "what it is", box=None, pad_edge=False)
    for name, about in facts["settings"].items():
        default = "" if about["default"] is None else about["default"]
        add_row(table, name, default, about["type"], about["text"])
    out.print(table)
