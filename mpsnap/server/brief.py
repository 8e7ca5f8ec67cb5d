"""JSON forms cut to what a person reads, each cut saying how much it left out.

This module owns where they are cut. It must not know what is shown.
"""

from __future__ import annotations

import json
from typing import Any

#: Characters of a string, items of a list or an object, and levels of them.
TEXT, ITEMS, LEVELS = 400, 60, 8
#: Characters of a summary.
SUMMARY = 80


def brief(form: Any, levels: int = LEVELS) -> Any:
    """Return a JSON form, cut: `{"$more": n}` stands for n more characters, items or levels.

    >>> brief(["a" * 403, *range(70)])[0][-3:], brief(list(range(70)))[-1]
    ('aa…', {'$more': 10})
    """
    if isinstance(form, str):
        return form if len(form) <= TEXT else form[: TEXT - 1] + "…"
    if isinstance(form, list):
        if levels == 0 and form:
            return [{"$more": len(form)}]
        cut = [brief(item, levels - 1) for item in form[:ITEMS]]
        return cut if len(form) <= ITEMS else [*cut, {"$more": len(form) - ITEMS}]
    if isinstance(form, dict):
        if levels == 0 and form:
            return {"$more": len(form)}
        cut_items: dict[str, Any] = {}
        for key, value in list(form.items())[:ITEMS]:
            # Two may differ in what is cut off alone.
            name = brief(key)
            cut_items[key if name in cut_items else name] = brief(value, levels - 1)
        return cut_items if len(form) <= ITEMS else {**cut_items, "$more": len(form) - ITEMS}
    return form


def summary(form: Any) -> str:
    """Return a JSON form in a few words.

    >>> summary({"tokens": 7, "seen": [1, 2]})
    'tokens=7, seen=[1, 2]'
    """
    if isinstance(form, dict) and form and not any(key.startswith("$") for key in form):
        words = ", ".join(f"{key}={json.dumps(brief(value, 2), ensure_ascii=False)}" for key, value in form.items())
    else:
        words = json.dumps(brief(form, 2), ensure_ascii=False)
    return words if len(words) <= SUMMARY else words[: SUMMARY - 1] + "…"
