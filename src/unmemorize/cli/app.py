"""What all commands share: the application, how settings become options, progress, options that many commands have."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, cast, get_args, get_type_hints

from annotated_types import Interval
from cyclopts import App, Group, Parameter
from cyclopts.validators import Number

from unmemorize import __version__
from unmemorize.cli.terminal import errors, out

# What people do, in the order of the help.
FIND = Group("Find what a model has memorized", sort_key=1)
EXPLAIN = Group("Explain what makes it copy", sort_key=2)
REMOVE = Group("Remove it", sort_key=3)
PROVE = Group("Prove that it is gone", sort_key=4)
DATA = Group("Training data", sort_key=5)
TESTBED = Group("Testbed and reports", sort_key=6)
PROGRAM = Group("This program", sort_key=9)

ARGUMENTS = ("model", "more", "prompt", "source", "picture")  # fields that are typed without a name, in this order
ARGUMENT = Group("Arguments", sort_key=9)
OUTPUT = Group("Where results go", sort_key=99)

app = App(
    name="unmemorize",
    help="Find what a text-to-image diffusion model has memorized, explain it, remove it, and prove that it is gone.",
    version=__version__,
    help_format="plaintext",
    console=out,
    error_console=errors,
    group_arguments=ARGUMENT,
    group_commands=PROGRAM,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(help="Let the shell complete commands and options.", group=PROGRAM)


def _worth_saying(default: Any) -> str | None:
    """A default as the help shows it; what stands for "none" says nothing."""
    if default in ("", None, False, ()):
        return None
    return ", ".join(default) if isinstance(default, tuple) else str(default)


def option(text: str, **named: Any) -> Parameter:
    """An option of a command that is no setting: where results go, and how they are shown."""
    return Parameter(help=text, group=OUTPUT, negative="", show_default=_worth_saying, **named)


Json = Annotated[bool, option("Print JSON for programs instead of text.", name="--json")]
Run = Annotated[str, option("Run directory, where a stopped run continues; under runs/ by default.")]
DryRun = Annotated[bool, option("Say what to expect, and do nothing.")]


def command(group: Group, *examples: str, name: str = "", to: App = app) -> Callable[[Callable[..., None]], Any]:
    """Register a function as a command.

    A first parameter whose type is a dataclass of settings is typed as its fields: each an option, with the text of
    the dataclass's `Attributes:` as its help, in the group of the class that defines it. What stands before `*` in the
    function is typed without a name.

    Args:
        group: What people do with it.
        examples: What could be typed, shown under the help.
        name: Its name, where that is not the function's.
        to: What it is a command of.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        own = list(inspect.signature(function).parameters.values())
        spec = hints[own[0].name] if own and is_dataclass(hints[own[0].name]) else None
        settings = _settings(spec) if spec else []
        arguments = []
        for parameter in own[1:] if spec else own:
            parameter = parameter.replace(annotation=_for_parser(hints[parameter.name], parameter.default))
            by_position = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            arguments.append(_argument(parameter) if by_position else parameter)
        signature = inspect.Signature(sorted([*settings, *arguments], key=lambda p: p.kind), return_annotation=None)

        @wraps(function)
        def typed(*positional: Any, **named: Any) -> None:
            bound = signature.bind(*positional, **named)
            bound.apply_defaults()
            values = dict(bound.arguments)
            given = [spec(**{p.name: values.pop(p.name) for p in settings})] if spec else []
            function(*given, **values)

        typed.__signature__ = signature  # type: ignore[attr-defined]
        typed.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        epilogue = "\n".join(["Examples:", *(f"  {line}" for line in examples)])
        to.command(typed, name=name or function.__name__, group=group, help_epilogue=epilogue)
        return typed

    return register


def _settings(spec: type) -> list[inspect.Parameter]:
    """The fields of a dataclass of settings as parameters, its own after those it inherits."""
    hints, texts = get_type_hints(spec, include_extras=True), _texts(spec)
    homes: dict[str, type] = {}
    for base in reversed(spec.__mro__):
        homes |= dict.fromkeys(inspect.get_annotations(base), base)
    parameters = []
    for field in fields(spec):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        typed_alone = field.name in ARGUMENTS
        home = homes[field.name]
        group = ARGUMENT if typed_alone else Group(_title(home), sort_key=10 + spec.__mro__.index(home))
        parameter = Parameter(
            help=texts[field.name],
            group=group,
            negative=None if default is True else "",
            show_default=_worth_saying,
            choices=tuple(filter(None, get_args(hints[field.name]))) if "" in get_args(hints[field.name]) else None,
        )
        kind = inspect.Parameter.POSITIONAL_ONLY if typed_alone else inspect.Parameter.KEYWORD_ONLY
        annotation = _for_parser(Annotated[hints[field.name], parameter], default)
        parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=annotation))
    return sorted(parameters, key=lambda p: ARGUMENTS.index(p.name) if p.name in ARGUMENTS else len(ARGUMENTS))


def _texts(spec: type) -> dict[str, str]:
    """The text of every field, from the `Attributes:` of the class and those it inherits from."""
    texts: dict[str, str] = {}
    for base in reversed(spec.__mro__):
        block = (inspect.getdoc(base) or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n      .*)*)", block, re.M):
            texts[name] = " ".join(text.split())
    return texts


def _title(spec: type) -> str:
    return (inspect.getdoc(spec) or "").splitlines()[0].rstrip(".")


def _for_parser(hint: Any, default: Any) -> Any:
    """A type as the parser takes it: the bounds of a number as its validator, and None where that is the default.

    No NaN is within bounds. Left in the type, bounds would be checked by pydantic, whose complaints take four lines.
    """
    bare, metadata = _stripped(hint), _metadata(hint)
    own = [part for part in metadata if isinstance(part, Parameter)]
    bounds = [part for part in metadata if isinstance(part, Interval)]
    validator = tuple(Number(gte=cast(float, part.ge), lte=cast(float, part.le)) for part in bounds)
    return Annotated[(bare | None if default is None else bare, *own, Parameter(validator=validator))]


def _metadata(hint: Any) -> list[Any]:
    """What is annotated to a type, and to the types it is made of."""
    metadata: list[Any] = []
    for argument in get_args(hint):
        metadata += _metadata(argument)
    return [*metadata, *getattr(hint, "__metadata__", ())]


def _stripped(hint: Any) -> Any:
    return get_type_hints(type("_", (), {"__annotations__": {"hint": hint}}))["hint"]


def _argument(parameter: inspect.Parameter) -> inspect.Parameter:
    hint = parameter.annotation
    alone: Any = Annotated[hint, Parameter(group=ARGUMENT)]
    return parameter.replace(kind=inspect.Parameter.POSITIONAL_ONLY, annotation=alone)
