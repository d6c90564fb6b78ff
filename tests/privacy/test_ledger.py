"""The ledger: charged before training, chained, refused when cut or edited, whole after kill -9."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
from support import releases

from fedcar.privacy.accountant import epsilon_of, noise_multiplier
from fedcar.privacy.errors import BudgetError, LedgerError, PrivacyError
from fedcar.privacy.ledger import Budget, Ledger, LedgerHead


def release(multiplier=20.0, steps=1, **changes):
    return releases.release(multiplier, steps=steps, **changes)


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "client" / "ledger.jsonl")
    made.create(Budget(3.0, 1e-5), count=1000)
    return made


def test_charged_before_training(ledger):
    receipt = ledger.charge("run", 0, release())
    on_disk = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert [entry["kind"] for entry in on_disk] == ["open", "charge"] and receipt.number == 1
    assert receipt.epsilon == ledger.spent() == epsilon_of([release()], 1e-5)
    assert ledger.releases() == [release()] and ledger.budget() == Budget(3.0, 1e-5)
    assert ledger.head() == LedgerHead(1, on_disk[1]["hash"])


def test_refused_before_the_budget_is_crossed(ledger):
    rounds = 10
    multiplier = noise_multiplier(release(steps=rounds), 3.0, 1e-5)
    for number in range(rounds):
        ledger.charge("run", number, release(multiplier))
    before = ledger.path.read_bytes()
    with pytest.raises(BudgetError, match="round 10 would bring epsilon to 3.* not trained, not charged") as refusal:
        ledger.charge("run", rounds, release(multiplier))
    assert refusal.value.exit_code == 3 and ledger.path.read_bytes() == before
    assert 2.999 < ledger.spent() <= 3.0


def test_a_budget_smaller_than_one_step_is_refused(ledger):
    with pytest.raises(BudgetError):
        ledger.charge("run", 0, release(0.1))
    assert ledger.spent() == 0


def test_seeded_noise_is_over_every_finite_budget(ledger, tmp_path):
    with pytest.raises(BudgetError, match="epsilon to inf"):
        ledger.charge("run", 0, release(noise="seeded-test"))
    endless = Ledger(tmp_path / "test.jsonl")
    endless.create(Budget(math.inf, 1e-5))
    assert math.isinf(endless.charge("run", 0, release(noise="seeded-test")).epsilon)
    assert math.isinf(endless.spent()) and math.isinf(endless.budget().epsilon)


def test_an_unknown_sampler_is_not_charged(ledger):
    with pytest.raises(PrivacyError, match="no amplification"):
        ledger.charge("run", 0, release(sampler="shuffle"))
    assert len(ledger.open()) == 1


def test_a_repeated_round_is_charged_again(ledger):
    for _ in range(2):
        ledger.charge("run", 0, release())
    assert ledger.spent() == epsilon_of([release(steps=2)], 1e-5)


def test_stored_update_is_sent_again_unchanged(ledger):
    assert ledger.stored_update("run", 0) is None
    receipt = ledger.charge("run", 0, release())
    assert ledger.stored_update("run", 0) is None
    ledger.store_update(receipt, b"noised update")
    assert ledger.stored_update("run", 0) == b"noised update"
    assert ledger.stored_update("other run", 0) is None and ledger.stored_update("run", 1) is None
    with pytest.raises(LedgerError, match="one charge, one update"):
        ledger.store_update(receipt, b"a second draw")
    again = ledger.charge("run", 0, release())
    ledger.store_update(again, b"trained again")
    assert ledger.stored_update("run", 0) == b"trained again"
    next((ledger.path.parent / "ledger.jsonl.updates").glob("*3.bin")).write_bytes(b"changed")
    with pytest.raises(LedgerError, match="missing or was changed"):
        ledger.stored_update("run", 0)


def test_an_update_without_charge_is_refused(ledger):
    receipt = ledger.charge("run", 0, release())
    for wrong in (type(receipt)(0, "run", 0, 0.0), type(receipt)(7, "run", 0, 0.0), type(receipt)(1, "run", 5, 0.0)):
        with pytest.raises(LedgerError, match="is no charge"):
            ledger.store_update(wrong, b"")


def filled(ledger, count=4):
    for number in range(count):
        ledger.charge("run", number, release())
    return ledger.path.read_bytes()


@pytest.mark.parametrize("lines", range(5))
def test_truncated_ledger_is_refused(ledger, lines):
    whole = filled(ledger)
    ledger.path.write_bytes(b"".join(whole.splitlines(keepends=True)[:lines]))
    with pytest.raises(LedgerError, match="truncated"):
        ledger.charge("run", 9, release())
    with pytest.raises(LedgerError, match="ledger already|truncated"):
        ledger.create(Budget(100.0, 1e-5))


def test_a_ledger_cut_inside_its_last_line_is_refused(ledger):
    whole = filled(ledger)
    for cut in (1, 2, 3, 100, len(whole.splitlines()[-1])):
        ledger.path.write_bytes(whole[:-cut])
        with pytest.raises(LedgerError, match="truncated"):
            ledger.open()


def test_a_ledger_and_head_restored_from_a_copy_are_refused_by_the_servers_head(ledger):
    filled(ledger, 2)
    copies = {path: path.read_bytes() for path in (ledger.path, ledger._head_path())}
    ledger.charge("run", 2, release())
    known = ledger.head()
    assert ledger.charge("run", 3, release(), known_head=known).number == known.number + 1
    for path, content in copies.items():
        path.write_bytes(content)
    with pytest.raises(LedgerError, match="the server knows an entry"):
        ledger.charge("run", 4, release(), known_head=known)


@pytest.fixture
def seen(tmp_path):
    """A ledger with a witness in another folder."""
    made = Ledger(tmp_path / "client" / "ledger.jsonl", witnesses=[tmp_path / "witnesses"])
    made.create(Budget(3.0, 1e-5))
    return made


def test_restored_ledger_is_refused_by_its_witness(seen, tmp_path):
    """By the witness alone: the server of the next run has seen nothing, and the head is restored as well."""
    filled(seen, 2)
    shutil.copytree(tmp_path / "client", tmp_path / "backup")
    seen.charge("run", 2, release())
    shutil.rmtree(tmp_path / "client")
    shutil.copytree(tmp_path / "backup", tmp_path / "client")
    for refused in (seen.open, seen.spent, lambda: seen.charge("next run", 0, release())):
        with pytest.raises(LedgerError, match="witnesses.* knows an entry 3 that it does not hold"):
            refused()
    assert len(Ledger(seen.path).releases()) == 2, "without a witness nobody could tell"


def test_a_witness_that_is_behind_or_lost_is_brought_up_to_date(seen, tmp_path):
    """It may be, after a kill -9 between line and witness, or where a ledger from before had none."""
    [witness] = (tmp_path / "witnesses").iterdir()
    first = witness.read_bytes()
    filled(seen, 3)
    for content in (first, None):
        witness.write_bytes(content) if content else witness.unlink()
        assert len(seen.releases()) == 3
        assert json.loads(witness.read_bytes())["number"] == 3 and witness.stat().st_mode & 0o077 == 0
    witness.write_bytes(b"{}")
    with pytest.raises(LedgerError, match="edited"):
        seen.open()


def test_a_witness_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    ledger = Ledger(tmp_path / "ledger.jsonl", witnesses=[tmp_path / "file" / "witnesses"])
    with pytest.raises(LedgerError, match="nothing was trained"):
        ledger.create(Budget(3.0, 1e-5))


def test_a_budget_is_set_once_for_a_ledger_that_had_none(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.create(Budget(math.inf, 1e-6))
    ledger.charge("run", 0, release())
    ledger.limit(Budget(3.0, 1e-5))
    ledger.limit(Budget(3.0, 1e-5))
    assert ledger.budget() == Budget(3.0, 1e-5) and len(ledger.open()) == 3
    for other in (Budget(2.0, 1e-5), Budget(math.inf, 1e-5), Budget(3.0, 1e-6)):
        with pytest.raises(LedgerError, match="does not change"):
            ledger.limit(other)
    with pytest.raises(BudgetError):
        ledger.charge("run", 1, release(0.5))


def test_the_clock_is_set_back_by_an_entry_and_no_charge_is_lost(tmp_path):
    now = [9e9]
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=lambda: now[0], witnesses=[tmp_path / "witnesses"])
    ledger.create(Budget(3.0, 1e-5))
    ledger.charge("run", 0, release())
    before, now[0] = ledger.spent(), 1e9
    with pytest.raises(LedgerError, match="8000000000 s before the last entry; set it, or go on by it with fedcar"):
        ledger.open()
    assert len(ledger.look()) == 2 and ledger.set_clock() == 8e9 and ledger.set_clock() == 0
    assert [(entry.kind, entry.time) for entry in ledger.open()[1:]] == [("charge", 9e9), ("clock", 1e9)]
    assert ledger.open()[-1].values == {"stood": 9e9, "now": 1e9} and ledger.spent() == before
    ledger.charge("run", 1, release())
    assert ledger.spent() > before and ledger.open()[-1].time == 1e9
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join([lines[0], *lines[2:]]))
    with pytest.raises(LedgerError, match="edited"):
        ledger.open()


def test_what_was_spent_before_a_run_and_with_it(ledger):
    for run in ("one", "two", "one", "three"):
        ledger.charge(run, 0, release())
    assert ledger.spent_by("one", 1e-6) == (0, epsilon_of([release(steps=4)], 1e-6))
    assert ledger.spent_by("two", 1e-6)[0] == epsilon_of([release()], 1e-6)
    assert ledger.spent_by("next", 1e-6)[0] == epsilon_of([release(steps=4)], 1e-6)
    assert ledger.charges("one", 0) == 2 and ledger.charges("one", 1) == 0


def test_a_lost_ledger_or_head_is_refused(ledger):
    filled(ledger)
    ledger._head_path().unlink()
    with pytest.raises(LedgerError, match="missing"):
        ledger.open()
    ledger.path.unlink()
    with pytest.raises(LedgerError, match="no ledger"):
        ledger.open()


@pytest.mark.parametrize(
    "old,new",
    [
        (b'"noise_multiplier": 20.0', b'"noise_multiplier": 90.0'),
        (b'"epsilon": 3.0', b'"epsilon": 9.0'),
        (b'"steps": 1', b'"steps": 0'),
        (b'"kind": "charge"', b'"kind": "chargf"'),
        (b"{", b""),
        (b'"format": 1', b'"format": 2'),
        (b'"round": 1,', b'"round": 1, "more": 2,'),
        (b"charge", b"\xff\xfe"),
    ],
)
def test_edited_ledger_is_refused(ledger, old, new):
    whole = filled(ledger)
    assert old in whole
    ledger.path.write_bytes(whole.replace(old, new, 1))
    with pytest.raises(LedgerError, match=r"edited|format 2"):
        ledger.charge("run", 9, release())


def test_lines_removed_swapped_or_added_are_refused(ledger):
    lines = filled(ledger).splitlines(keepends=True)
    for changed in (
        lines[:1] + lines[2:],
        [lines[0], lines[2], lines[1], *lines[3:]],
        [*lines, lines[-1]],
        [*lines, b"\n"],
    ):
        ledger.path.write_bytes(b"".join(changed))
        with pytest.raises(LedgerError):
            ledger.open()


def test_an_edited_head_is_refused(ledger):
    filled(ledger)
    ledger._head_path().write_text("{}")
    with pytest.raises(LedgerError, match="head"):
        ledger.open()


def test_clock_going_backwards_is_refused(tmp_path):
    now = [1000.0]
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=lambda: now[0])
    ledger.create(Budget(3.0, 1e-5))
    ledger.charge("run", 0, release())
    now[0] = 998.0  # a time server's correction
    ledger.charge("run", 1, release())
    assert ledger.open()[-1].time == 1000.0
    now[0] = 400.0
    with pytest.raises(LedgerError, match="the clock is 600 s before"):
        ledger.charge("run", 2, release())


def test_two_processes_cannot_charge_at_once(ledger, monkeypatch):
    monkeypatch.setattr("fedcar.privacy.ledger.LOCK_SECONDS", 0.1)
    with ledger._locked(), pytest.raises(LedgerError, match="in use"):
        Ledger(ledger.path).charge("run", 0, release())
    ledger.charge("run", 0, release())


def test_a_second_budget_is_refused(ledger):
    with pytest.raises(LedgerError, match="its budget does not change|ledger already"):
        ledger.create(Budget(30.0, 1e-5))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="nothing was trained"):
        Ledger(tmp_path / "file" / "ledger.jsonl").create(Budget(1.0, 1e-5))


@pytest.mark.parametrize("budget", [Budget(0.0, 1e-5), Budget(-1.0, 1e-5), Budget(1.0, 0.0), Budget(1.0, 0.01)])
def test_a_senseless_budget_is_refused(tmp_path, budget):
    with pytest.raises(PrivacyError, match="must be"):
        Ledger(tmp_path / "ledger.jsonl").create(budget, count=100)


def test_a_line_torn_by_a_crash_is_dropped_and_noted(ledger):
    """At every byte: the line was being written, its head was not; nothing was trained on it."""
    filled(ledger, 2)
    kept = {path: path.read_bytes() for path in (ledger.path, ledger._head_path())}
    ledger.charge("run", 2, release())
    written = ledger.path.read_bytes()[len(kept[ledger.path]) :]
    for cut in (1, 2, 50, len(written) // 2, len(written) - 2, len(written) - 1):
        kept_and_torn = kept[ledger.path] + written[:cut]
        ledger.path.write_bytes(kept_and_torn), ledger._head_path().write_bytes(kept[ledger._head_path()])
        entries = ledger.open()
        assert [entry.kind for entry in entries] == ["open", "charge", "charge", "recovered"]
        assert entries[-1].values["dropped_bytes"] == cut
        ledger.charge("run", 2, release())
        assert len(ledger.releases()) == 3


def test_a_whole_line_without_head_counts(ledger):
    filled(ledger, 2)
    old_head = ledger._head_path().read_bytes()
    ledger.charge("run", 2, release())
    ledger._head_path().write_bytes(old_head)
    assert len(ledger.releases()) == 3 and ledger.head().number == 3


def test_a_torn_first_line_can_be_created_again(ledger):
    whole = ledger.path.read_bytes()
    ledger._head_path().unlink()
    ledger.path.write_bytes(whole[:30])
    ledger.create(Budget(2.0, 1e-5))
    assert ledger.budget().epsilon == 2.0


CLIENT = """
import os, sys
from fedcar.privacy.ledger import Ledger
from fedcar.privacy.release import Release
path, trained, sent = sys.argv[1:]
release = Release(name="head", noise_multiplier=300.0, sensitivity=1.0, sampler="full-batch", unit="example",
                  adjacency="add-or-remove-one")
ledger = Ledger(path)
number = len([entry for entry in ledger.open() if entry.kind == "charge"])
def mark(place):
    descriptor = os.open(place, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"."), os.fsync(descriptor), os.close(descriptor)
print("ready", flush=True)
while True:
    receipt = ledger.charge("run", number, release)
    mark(trained)
    ledger.store_update(receipt, f"update {number}".encode())
    mark(sent)
    number += 1
"""


def test_killed_at_any_point_never_under_counts(tmp_path):
    """Real processes, killed at 20 random points: never fewer charges than trainings begun, and it goes on."""
    path, trained, sent = tmp_path / "ledger.jsonl", tmp_path / "trained", tmp_path / "sent"
    Ledger(path).create(Budget(3.0, 1e-5))
    trained.touch(), sent.touch()

    def client() -> subprocess.Popen:
        command = [sys.executable, "-c", CLIENT, str(path), str(trained), str(sent)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)

    begun = time.perf_counter()
    Ledger(path).charge("first", 0, release(300.0))
    one_charge, chance = time.perf_counter() - begun, random.Random(7)
    for _ in range(20):
        with client() as child:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(one_charge * chance.uniform(0.0, 6.0))
            child.kill()
        assert child.returncode == -9, "the client must not have ended by itself"
        entries = Ledger(path).open()
        charges = [entry for entry in entries if entry.kind == "charge"]
        stored = [entry for entry in entries if entry.kind == "update"]
        assert len(charges) >= trained.stat().st_size >= len(stored) >= sent.stat().st_size
        for entry in stored[-2:]:
            update = Ledger(path).stored_update("run", entry.values["round"])
            assert update == f"update {entry.values['round']}".encode()
    before, deadline = sent.stat().st_size, time.monotonic() + 60
    with client() as child:
        while sent.stat().st_size <= before and time.monotonic() < deadline:
            time.sleep(0.01)
        child.kill()
    assert sent.stat().st_size > before, "it goes on"
