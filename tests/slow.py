"""What a preparation does, one value at a time: the oracle of its tests."""

from collections import Counter
from typing import Any

import numpy as np
import polars as pl

from surefoot.lab.ingest.vocabularies import MISSING, UNSEEN


class SlowVocabulary:
    """What ``Vocabulary`` does, one value at a time."""

    def __init__(self, min_count: int) -> None:
        self.min_count, self.known, self.counts = min_count, dict[Any, int](), Counter[Any]()

    def id(self, value: Any) -> int:
        return MISSING if value is None else self.known.get(value, UNSEEN)

    def learn(self, values: list[Any]) -> None:
        self.counts.update(value for value in values if value is not None and value not in self.known)
        for value in [value for value, count in self.counts.items() if count >= self.min_count]:
            self.known[value] = len(self.known) + 2
            del self.counts[value]


def kept(tags: str | None) -> list[str]:
    return [tag for tag in (tags or "").split("|") if tag][:3]


def price(value: float | None) -> float:
    return np.nan if value is None or value == -1 else float(np.float32(np.log1p(value)))


def slowly(days: dict[str, pl.DataFrame]) -> dict[str, dict[str, list[Any]]]:
    """Prepare the rich log in plain Python."""
    users, items, tags = SlowVocabulary(1), SlowVocabulary(3), SlowVocabulary(1)
    past: dict[str, list[float]] = {"price": [], "length": []}
    found = {}
    for i, (day, frame) in enumerate(days.items()):
        rows = frame.sort("t", maintain_order=True).to_dicts()
        numbers = {
            "price": [price(row["price"]) for row in rows],
            "length": [float(np.float32(min(max(row["length"], 0), 50))) for row in rows],
        }
        for step in ("learn", "encode") if i == 0 else ("encode", "learn"):
            if step == "learn":
                users.learn([row["user"] for row in rows])
                items.learn([row["item"] for row in rows])
                tags.learn([tag for row in rows for tag in kept(row["tags"])])
                past = {name: past[name] + values for name, values in numbers.items()}
                continue
            found[day] = {
                "user": [users.id(row["user"]) for row in rows],
                "item": [items.id(row["item"]) for row in rows],
                "tags": [([tags.id(tag) for tag in kept(row["tags"])] + [MISSING] * 3)[:3] for row in rows],
                "plain": [row["length"] for row in rows],
                "click": [row["click"] for row in rows],
            } | {
                name: np.nan_to_num((np.array(values) - np.nanmean(past[name])) / np.nanstd(past[name])).tolist()
                for name, values in numbers.items()
            }
    return found
