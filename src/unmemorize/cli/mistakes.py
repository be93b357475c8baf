"""What the parser and the system refuse, in our words: one line that says what is wrong and what to type instead."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import CycloptsError, UnknownOptionError

from unmemorize.core.errors import UserError
from unmemorize.core.plain import is_text, shortened

LONGEST = 200  # characters of what was typed

# Options that are called otherwise now, by command where that matters; "" stands for every other command.
RENAMED: dict[str, dict[str, str]] = {
    "--attack-batch": {"audit": "--attack-method dori:batch=…"},
    "--attack-steps": {"": "--attack-updates"},
    "--attacked": {"": "--attack"},
    "--cache": {"locate": "--method nemo:cache=…"},
    "--check-every": {"mitigate": "--method …:check_every=…"},
    "--edit": {"": "--mitigation"},
    "--export": {"data": "--out"},
    "--guard": {"generate": "--mitigation guard"},
    "--image": {"locality": "--target"},
    "--images": {"attack": "--targets", "mitigate": "--targets", "": "--references"},
    "--images-per-prompt": {"": "--pictures"},
    "--inner": {"mitigate": "--method adversarial-finetune:attack=dori:updates=…"},
    "--layers": {"locate": "--method nemo:layers=…", "locality": "--method nemo:layers=…"},
    "--lora-rank": {"mitigate": "--method …:lora=…"},
    "--low-memory": {"mitigate": "--method …:low_memory=true"},
    "--lr": {"": "--method …:lr=…"},
    "--min-theta": {"locate": "--method nemo:minimum=…"},
    "--mitigate": {"audit": "--mitigation"},
    "--mitigated": {"audit": "--mitigation"},
    "--ordinary": {"mitigate": "--controls"},
    "--per-prompt": {"locate": "--method wanda:per_prompt=true"},
    "--pool": {"explain": "--method gradient:pool=…"},
    "--no-refine": {"locate": "--method nemo:refine=false"},
    "--refine": {"locality": "--method nemo:refine=true"},
    "--rule": {"locate": "--method nemo:rule=…"},
    "--sampling": {"": "--steps"},
    "--sampling-steps": {"": "--steps"},
    "--sparsity": {
        "audit": "--mitigation wanda:sparsity=…",
        **dict.fromkeys(("locality", "locate"), "--method wanda:sparsity=…"),
    },
    "--target": {"generate": "--mitigation guard:threshold=…,target=…"},
    "--threshold": {"generate": "--mitigation guard:threshold=…,target=…", "locate": "--method nemo:threshold=…"},
    "--window": {"": "--method …:first=…,last=…"},
    "--seeds": dict.fromkeys(("attack", "generate", "locality", "mitigate", "triggers"), "--pictures"),
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
    text = " ".join(str(error).split())
    for token in error.root_input_tokens or ():
        if len(token) > LONGEST:
            text = text.replace(" ".join(token.split()), shortened(token, LONGEST))
    return text[:1].lower() + text[1:].rstrip(".")


def refusal(error: OSError) -> str:
    """What the operating system refused, as other mistakes are told: the file first."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def require_text(words: Sequence[str], encoding: str = sys.getfilesystemencoding()) -> None:
    """Refuse words that files of a run, whose names and texts are UTF-8, could not hold.

    Raises:
        UserError: A word has bytes that are no text, or characters outside ASCII in a locale of another encoding.
    """
    for word in words:
        if not is_text(word) or not (word.isascii() or encoding == "utf-8"):
            raise UserError(
                f"{word}: cannot be named in this locale, whose encoding is {encoding}: rename the file, or set a "
                "locale of UTF-8, such as LC_ALL=C.UTF-8"
            )
