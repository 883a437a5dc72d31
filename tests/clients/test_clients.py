"""Every client: at a high rate, under each fault, and its capsules run again."""

import functools
from pathlib import Path
from typing import Any

import pytest

from clients.bed import FAULTS, Client, Fault, Kind, Outcome, Use, lines, named, run, run_again
from clients.deepctr import DeepCtr
from clients.every import CLIENTS

pytestmark = pytest.mark.slow

POINT = 0.01  # of AUC


def of_each(clients: list[Client]) -> pytest.MarkDecorator:
    """Go through clients, those of one on one process, so that what they share is made once."""
    group = pytest.mark.xdist_group
    return pytest.mark.parametrize(
        "client", [pytest.param(each, marks=group(each.name), id=each.name.replace(" ", "-")) for each in clients]
    )


def every_fault() -> list[Any]:
    """Return clients with their faults; of two that differ little from others only those in the middle."""
    few = ("Lightning, manual, 1 optimizer", "TorchRec, combined")
    pairs = [(each, fault) for each in CLIENTS for fault in FAULTS if each.name not in few or fault.step == 40]
    return [
        pytest.param(
            client,
            fault,
            marks=pytest.mark.xdist_group(client.name),
            id=f"{client.name.replace(' ', '-')}-{fault.kind}-{fault.step}",
        )
        for client, fault in pairs
    ]


@functools.cache
def twin(client: str, folder: Path) -> Outcome:
    """Return the run that nothing befalls."""
    (found,) = [each for each in CLIENTS if each.name == client]
    return run(found, use=Use.ALL, rate=found.sane, folder=folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("twins")


@of_each(CLIENTS)
def test_at_most_three_lines_are_added(client: Client) -> None:
    assert 1 <= lines(client) <= 3


@pytest.mark.parametrize("seed", [0, 1])
@of_each([*CLIENTS, DeepCtr("PLE"), DeepCtr("SharedBottom")])
def test_at_a_high_rate_the_stock_optimizer_diverges_and_the_clipped_one_does_not(client: Client, seed: int) -> None:
    sane = run(client, use=Use.NOTHING, rate=client.sane, seed=seed).auc
    assert run(client, use=Use.NOTHING, rate=client.high, seed=seed).auc < sane - 5 * POINT
    assert run(client, use=Use.CLIP, rate=client.high, seed=seed).auc > sane - 3 * POINT


@of_each(CLIENTS)
def test_nothing_is_told_of_a_run_that_nothing_befalls(client: Client, shared: Path) -> None:
    assert twin(client.name, shared / client.name).alarms == []


@pytest.mark.parametrize(("client", "fault"), every_fault())
def test_a_fault_is_named_survived_and_replayed(client: Client, fault: Fault, tmp_path: Path, shared: Path) -> None:
    outcome = run(client, use=Use.ALL, rate=client.sane, fault=fault, folder=tmp_path)
    assert not outcome.stopped
    alarm = named(outcome, fault)
    assert alarm is not None, outcome.alarms
    assert outcome.alarms[0] == alarm
    assert outcome.data is not None
    again = run_again(client, outcome.capsules[0], rate=client.sane, fault=fault, data=outcome.data)
    assert again.difference is None
    assert again.event == alarm.step
    assert again.states >= 2
    assert outcome.auc > twin(client.name, shared / client.name).auc - POINT


@of_each([each for each in CLIENTS if each.name != "torch-rechub MMOE"])
def test_clipping_alone_survives_a_rate_that_leaps(client: Client) -> None:
    sane = run(client, use=Use.CLIP, rate=client.sane).auc
    fault = Fault(Kind.RATE, 40)
    assert run(client, use=Use.CLIP, rate=client.sane, fault=fault).auc > sane - POINT
    assert run(client, use=Use.NOTHING, rate=client.sane, fault=fault).auc < sane - 2 * POINT
