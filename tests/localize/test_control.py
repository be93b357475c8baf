"""The control of a localizer: as many ordinary prompts in the place of the memorized ones."""

from __future__ import annotations

import pytest

from unmemorize.core.errors import UserError
from unmemorize.core.results import Localization
from unmemorize.localize.control import aimed_at_ordinary


def locate(prompts):
    return Localization("any", "weights", {}, {}, (0,), tuple(prompts), 0)


def test_the_control_has_as_many_ordinary_prompts():
    """Three memorized prompts, three of seven ordinary ones, from first to last; with too few it is refused."""
    found = aimed_at_ordinary(locate, ["a", "b", "c"], list("0123456"))
    assert found.prompts == ("0", "3", "6")
    with pytest.raises(UserError, match="3 ordinary prompts"):
        aimed_at_ordinary(locate, ["a", "b", "c"], ["0", "1"])
