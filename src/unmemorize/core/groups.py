"""The pictures that an attack is judged by: those attacked, and its two controls. One name each, and one label."""

from __future__ import annotations

ATTACKED, CONTROL, UNSEEN = "attacked", "control", "unseen"
CONTROLS = (CONTROL, UNSEEN)
LABELS = {ATTACKED: "attacked", CONTROL: "trained on, not memorized", UNSEEN: "never trained on"}
# As an audit's tables have them. What a column holds is public, so these stay.
IN_AUDIT = {ATTACKED: "memorized", CONTROL: "negative", UNSEEN: "never trained"}
