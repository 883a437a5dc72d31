"""Divergences that a roll-back undid: the detector forgets them when it goes back, and a run's history has them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from surefoot.detect.detector import Alarm, Event, Verdict


@dataclass(frozen=True)
class RolledBackEvents:
    """The divergences, oldest first. Its state is saved beside the model's, and is not rolled back with it."""

    events: list[Event] = field(default_factory=list)

    def add(self, alarm: Alarm, verdict: Verdict, end: int) -> None:
        """Take in what began with an alarm and ended at a step."""
        self.events.append(Event(alarm.task or "", alarm.step, verdict, alarm.reason, end, alarm.layer, alarm.signal))

    def state_dict(self) -> dict[str, Any]:
        """Return them in plain numbers and words."""
        return {"events": [{**asdict(event), "verdict": event.verdict.value} for event in self.events]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; the list stays the same object."""
        self.events[:] = [Event(**{**event, "verdict": Verdict(event["verdict"])}) for event in state["events"]]
