"""A control of every method that locates memory: the same method, aimed at prompts that are not memorized."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unmemorize.core.choose import evenly
from unmemorize.core.errors import UserError
from unmemorize.core.results import Localization


def aimed_at_ordinary(
    locate: Callable[[Sequence[str]], Localization], memorized: Sequence[str], ordinary: Sequence[str]
) -> Localization:
    """What a method selects for as many ordinary prompts as there are memorized ones, evenly chosen.

    Removing it and generating from the *memorized* prompts tells damage from localization: where as many copies are
    hidden as by the units of the memorized prompts, the method has not found where copies are held.

    Args:
        locate: The method with its settings, as a function of prompts.
        memorized: The memorized prompts, of which only the number counts.
        ordinary: Prompts that are not memorized, and none that quality is judged by.

    Raises:
        UserError: There are fewer ordinary prompts than memorized ones.
    """
    if len(ordinary) < len(memorized):
        raise UserError(f"a control needs {len(memorized)} ordinary prompts, as many as memorized ones: name more")
    return locate([ordinary[i] for i in evenly(len(ordinary), len(memorized))])
