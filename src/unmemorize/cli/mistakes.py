"""What the parser refuses, in our words: one line that says what is wrong and what to type instead."""

from __future__ import annotations

from cyclopts import CycloptsError, UnknownOptionError

from unmemorize.core.plain import shortened

LONGEST = 200  # characters of what was typed

# Options that are called otherwise now, by command where that matters; "" stands for every other command.
RENAMED: dict[str, dict[str, str]] = {
    "--attack-steps": {"": "--attack-updates"},
    "--attacked": {"": "--attack"},
    "--export": {"data": "--out"},
    "--image": {"locality": "--target"},
    "--images": {"attack": "--targets", "mitigate": "--targets", "": "--references"},
    "--images-per-prompt": {"": "--pictures"},
    "--mitigate": {"audit": "--mitigation"},
    "--mitigated": {"audit": "--mitigation"},
    "--ordinary": {"mitigate": "--controls"},
    "--sampling": {"": "--steps"},
    "--sampling-steps": {"": "--steps"},
    "--seeds": dict.fromkeys(("attack", "generate", "locality", "mitigate", "triggers"), "--pictures"),
}
# Options that one could expect, and what there is instead.
ABSENT = {
    "--offload": "models are loaded whole: a smaller --dtype or --device cpu takes less memory of a GPU",
    "--batch": "this command chooses its own number of rows at once",
    "--device": "this command takes a GPU where there is one: hide it with CUDA_VISIBLE_DEVICES=''",
    "--dtype": "this command computes in float32",
}


def explained(error: CycloptsError) -> str:
    """The parser's complaint on one line; an option's old name brings its new one."""
    command = " ".join(error.command_chain or ())
    if isinstance(error, UnknownOptionError):
        typed = (error.token.keyword or error.token.value).partition("=")[0]
        new = RENAMED.get(typed, {})
        name = new.get(command, new.get(""))
        if name:
            return f"{typed}: this option is called {name} now"
        if typed in ABSENT:
            return f"{typed}: no such option of {command}: {ABSENT[typed]}"
    text = " ".join(str(error).split())
    for token in error.root_input_tokens or ():
        if len(token) > LONGEST:
            text = text.replace(" ".join(token.split()), shortened(token, LONGEST))
    return text[:1].lower() + text[1:].rstrip(".")
