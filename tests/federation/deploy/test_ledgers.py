"""Which ledger a device counts in: one for a collection's folder, whatever names and folders devices have."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command import environment

pytest.importorskip("flwr")

from support.deployments import finished, kill, newest, rounds, start, until  # noqa: E402

from fedcar.collection.collection import Collection  # noqa: E402
from fedcar.common.progress import Silent  # noqa: E402
from fedcar.errors import FedcarError  # noqa: E402
from fedcar.federation.deploy.join import DeviceOptions, ledgers_of  # noqa: E402
from fedcar.federation.deploy.options import HEADS  # noqa: E402
from fedcar.federation.ledgers import Ledgers  # noqa: E402
from fedcar.federation.simulate.over_flower import Deployment  # noqa: E402
from fedcar.privacy.errors import LedgerError, PrivacyError  # noqa: E402
from fedcar.privacy.ledger import Budget, Ledger  # noqa: E402
from fedcar.training.noised.plan import make_plan  # noqa: E402
from fedcar.training.noised.tally import Counting, found_of, tally_of  # noqa: E402
from fedcar.training.target import Target  # noqa: E402

pytest_plugins = ("support.deployments",)
BUDGET = Budget(8.0, 1e-5)


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class Devices:
    """Devices with folders of their own, over collections below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.report = folder, Said()

    def join(
        self, name: str, budget: Budget | None = BUDGET, ledger: Path | None = None, collection: str = "questions"
    ) -> Ledgers:
        options = DeviceOptions(
            self.folder / f"{name}.key", self.folder / collection, self.folder / name, None, None, ledger, budget
        )
        return ledgers_of(options, Collection.read(options.collection), self.report)


@pytest.fixture
def devices(collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Devices:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    collection.write(tmp_path / "questions")
    return Devices(tmp_path)


def charge(ledgers: Ledgers, run: str, epsilon: float = 4.0) -> None:
    target = Target(epsilon)
    ledger, _ = ledgers.ledger(run, None, target)
    plan = make_plan(target, "ridge", 6)
    for number, release in enumerate(plan.releases):
        ledger.charge(run, number, release)


def test_two_devices_over_one_collection_share_one_budget(devices: Devices) -> None:
    """By another name and data folder, through a link, and without --epsilon: nothing is to be had a second time."""
    (devices.folder / "link").symlink_to(devices.folder / "questions")
    first, second = devices.join("a"), devices.join("b", collection="link")
    assert first.file == second.file == found_of(devices.folder / "questions")
    charge(first, "one")
    charge(second, "two")
    third = devices.join("c", None)
    assert third.budget == BUDGET and third.file == first.file
    with pytest.raises(PrivacyError, match="would bring epsilon to"):
        charge(third, "three", 8.0)
    with pytest.raises(PrivacyError, match="its budget is epsilon 8, delta 1e-05 and does not change"):
        devices.join("d", Budget(9.0, 1e-5))


def test_what_was_trained_in_one_place_counts_against_a_devices_budget(devices: Devices) -> None:
    collection = Collection.read(devices.folder / "questions")
    plan = make_plan(Target(4.0), "ridge", 6)
    tally = tally_of(collection, plan, "trained", Counting(), lambda line: None)
    assert tally is not None
    for number, release in enumerate(plan.releases):
        tally.charge(number, release)
    ledgers = devices.join("a", Budget(5.0, 1e-5))
    with pytest.raises(PrivacyError, match="would bring epsilon to"):
        charge(ledgers, "one", 4.0)


def test_a_ledger_from_before_is_gone_on_with(devices: Devices) -> None:
    """In a device's folder, as it was kept until now; a second device over the collection shares that one."""
    before = devices.folder / "a" / "ledgers" / "ledger.jsonl"
    Ledger(before).create(BUDGET)
    old = devices.join("a")
    charge(old, "one")
    assert old.file == before and devices.join("a", None).budget == BUDGET
    other = devices.join("b")
    assert other.file == before and len(other.ledger("two", None, Target(1.0))[0].releases()) == 2
    assert not list((devices.folder / "state").rglob("ledger.jsonl")), "there is no second one"


def test_a_ledger_that_is_named_is_the_collections_from_then_on(devices: Devices) -> None:
    named = devices.join("a", ledger=devices.folder / "mine")
    assert named.file == devices.folder / "mine" / "ledger.jsonl"
    assert devices.join("b").file == named.file
    assert devices.join("c", ledger=devices.folder / "other").file != named.file
    assert any("takes the place of this collection's own ledger" in line for line in devices.report.lines)


def test_a_collection_that_moved_takes_the_devices_ledger_along(devices: Devices) -> None:
    first = devices.join("a")
    (devices.folder / "questions").rename(devices.folder / "moved")
    assert devices.join("a", collection="moved").file == first.file
    assert devices.join("b", collection="moved").file != first.file
    assert any(f"count on in its own with --ledger {first.file}" in line for line in devices.report.lines)


def test_a_devices_ledger_that_is_gone_is_not_begun_anew(devices: Devices) -> None:
    """As in a container whose state lies in no volume: what was spent would be forgotten without a word."""
    devices.join("a")
    shutil.rmtree(devices.folder / "state")
    for budget in (BUDGET, None):
        with pytest.raises(FedcarError, match="the ledger of this device is gone.*or name the one that counts"):
            devices.join("a", budget)
    assert devices.join("a", ledger=devices.folder / "new").budget == BUDGET


def test_a_restored_ledger_is_refused_at_the_next_join(devices: Devices) -> None:
    """Ledger and user's witness are both restored; what the device's own folder saw tells."""
    first = devices.join("a")
    for name in ("state", "data"):
        shutil.copytree(devices.folder / name, devices.folder / f"{name}-copy")
    charge(first, "one")
    for name in ("state", "data"):
        shutil.rmtree(devices.folder / name)
        shutil.copytree(devices.folder / f"{name}-copy", devices.folder / name)
    with pytest.raises(LedgerError, match="restored from a copy"):
        devices.join("a")


def test_without_a_budget_a_run_is_counted_in_the_collections_ledger_too(devices: Devices) -> None:
    ledgers = devices.join("a", None)
    plan = make_plan(Target(2.0), "ridge", 6)
    assert ledgers.budget is None and ledgers.ledger("one", None, plan.target)[0].budget() == Budget(2.0, 1e-5)
    tally = ledgers.tally("one", plan)
    assert tally is not None and tally.ledger.path == found_of(devices.folder / "questions")
    assert devices.join("a", None).budget is None, "counting is no budget"


def test_where_the_user_has_no_folder_the_ledger_lies_with_the_device(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("fedcar.common.files.has_home", lambda: False)
    ledgers = devices.join("a")
    assert ledgers.file == devices.folder / "a" / "ledgers" / "ledger.jsonl" and ledgers.file.exists()
    assert "another device over this collection has another budget" in devices.report.lines[-1]
    assert devices.join("b", None).budget is None


RACE = """
import sys
from pathlib import Path
from fedcar.collection.collection import Collection
from fedcar.common.progress import Silent
from fedcar.federation.deploy.join import DeviceOptions, ledgers_of
from fedcar.privacy.errors import BudgetError
from fedcar.privacy.ledger import Budget
from fedcar.training.noised.plan import make_plan
from fedcar.training.target import Target
folder, name = Path(sys.argv[1]), sys.argv[2]
collection = Collection.read(folder / "questions")
options = DeviceOptions(folder / "key", folder / "questions", folder / name, budget=Budget(8.0, 1e-5))
print("ready", flush=True)
sys.stdin.readline()
ledgers, plan = ledgers_of(options, collection, Silent()), make_plan(Target(3.0), "ridge", 6)
charged = 0
try:
    for number in range(40):
        ledger, _ = ledgers.ledger(name, None, plan.target)
        ledger.charge(name, number, plan.sums)
        charged += 1
except BudgetError:
    print(charged, flush=True)
"""


def test_devices_that_race_for_one_ledger_never_cross_its_budget(devices: Devices) -> None:
    """Three processes make it and charge it at once; all that any of them was granted stands there."""
    command = [sys.executable, "-W", "ignore", "-c", RACE, str(devices.folder)]
    inside = environment(PYTHONPATH=":".join(sys.path))
    racing = [
        subprocess.Popen([*command, name], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=inside)
        for name in "abc"
    ]
    for process in racing:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in racing:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    granted = [int(process.communicate(timeout=120)[0]) for process in racing]
    ledger = Ledger(devices.join("d").file)
    assert sum(granted) == len(ledger.releases()) > 3 and 7 < ledger.spent() <= 8


# -------------------------------------------------------------------- as real processes


OPTIONS: tuple[Any, ...] = ("--epsilon", 8, "--against-advice", "--rounds", 2, "--json")


@pytest.mark.slow
@pytest.mark.ci
def test_a_second_name_over_the_same_questions_has_what_is_left_of_one_budget(
    deployment: Deployment, collections: Path, encoder: Path
) -> None:
    """kill -9 of the run in the middle: what devices said until then is known to whoever goes on."""
    place = deployment.place.folder
    file = with_budget(deployment, collections)
    process = start(place, "run", "--quorum", 1, *OPTIONS)
    until(lambda: (place / "runs").exists() and any((place / "runs").iterdir()) and rounds(newest(place)) >= 2)
    kill(process)
    assert set(json.loads((place / HEADS).read_text())) == {"hospital-b"}, "the other one keeps a ledger a run"
    claim = finished(start(place, "resume", newest(place).name, "--json"))["privacy"]
    assert claim["spent_before"] == 0 and 7 < claim["spent_in_all"] <= 12 and 7 < Ledger(file).spent() <= 12
    deployment.join("hospital-c", collections / "questions-b", str(encoder), deployment.folder / "cache")
    deployment.wait_for_devices()
    deployment.devices["hospital-b"].stop()
    _, err = start(place, "run", "--quorum", 1, *OPTIONS).communicate(timeout=200)
    assert "hospital-c: exchange" in err and "would cross the privacy budget" in err.splitlines()[-1], err


@pytest.mark.slow
@pytest.mark.ci
def test_a_restored_ledger_is_refused_in_the_next_run(deployment: Deployment, collections: Path) -> None:
    """With every witness on the device gone: the server knows better."""
    place, b = deployment.place.folder, deployment.devices["hospital-b"]
    file = with_budget(deployment, collections)
    shutil.copytree(file.parent, deployment.folder / "backup")
    finished(start(place, "run", "--quorum", 1, *OPTIONS))
    b.stop()
    shutil.rmtree(file.parent)
    shutil.copytree(deployment.folder / "backup", file.parent)
    forget(deployment)
    b.start()
    deployment.wait_for_devices()
    until(lambda: "joining" in b.log.read_text().splitlines()[-1])
    _, err = start(place, "run", "--quorum", 1, *OPTIONS).communicate(timeout=200)
    assert "hospital-b: cannot use its ledger" in err, err
    assert "the server knows an entry" in b.log.read_text()


def with_budget(deployment: Deployment, collections: Path) -> Path:
    """hospital-b joins again with a budget of its own; its ledger."""
    b = deployment.devices["hospital-b"]
    b.stop()
    b.command += ["--epsilon", "12"]
    b.start()
    deployment.wait_for_devices()
    return found_of_in(deployment, collections / "questions-b")


def found_of_in(deployment: Deployment, collection: Path) -> Path:
    registers = (deployment.folder / "state").rglob("collection.json")
    [content] = [one for one in (json.loads(file.read_text()) for file in registers)
                 if one["collection"] == str(collection.resolve())]  # fmt: skip
    return Path(content["ledger"])


def forget(deployment: Deployment) -> None:
    """All witnesses of this deployment's ledgers, those of the user and those of the devices."""
    from fedcar.common.files import user_folder

    for folder in (user_folder("data"), deployment.folder):
        for witness in folder.rglob("witnesses/*.json"):
            if str(deployment.folder) in witness.read_text():
                witness.unlink()
