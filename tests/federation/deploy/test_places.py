"""Who may be connected to the front, how many at once, and who gives up a place."""

from __future__ import annotations

import pytest

from fedcar.federation.deploy import places
from fedcar.federation.deploy.places import Place, Places, network_of


class House:
    """Places with the names of those that were closed."""

    def __init__(self) -> None:
        self.places, self.closed = Places(), []

    def take(self, host: str, name: str) -> Place:
        return self.places.take(host, lambda: self.closed.append(name))


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    for name, most in (("STRANGERS", 6), ("OF_ONE_ADDRESS", 4), ("OF_ONE_DEVICE", 2)):
        monkeypatch.setattr(places, name, most)
    return House()


def test_one_address_leaves_places_for_others(house: House) -> None:
    for number in range(9):
        house.take("192.0.2.1", f"flood {number}")
    assert house.closed == [f"flood {number}" for number in range(5)], "its own oldest ones"
    house.take("192.0.2.2", "other")
    house.take("192.0.2.3", "third")
    house.take("192.0.2.4", "fourth")
    assert house.closed[5:] == ["flood 5"], "where all is full, the address that has most gives up one"
    assert house.places.strangers == 6


def test_strangers_never_take_a_devices_place(house: House) -> None:
    """Not even from the device's own address."""
    device = house.take("192.0.2.1", "device")
    house.places.know(device, "a")
    for number in range(50):
        house.take("192.0.2.1", "stranger")
        house.take(f"192.0.2.{number}", "stranger")
    assert "device" not in house.closed and len(house.closed) == 100 - 6
    house.places.know(device, "a")
    house.places.leave(device)
    house.places.leave(device)
    assert set(house.places.groups) and all(kind == "address" for kind, _ in house.places.groups)
    assert house.places.strangers == sum(map(len, house.places.groups.values())) == 6


def test_a_device_has_no_more_places_than_its_own(house: House) -> None:
    for number in range(5):
        house.places.know(house.take("192.0.2.1", str(number)), "a")
    house.places.know(house.take("192.0.2.1", "b"), "b")
    assert house.closed == ["0", "1", "2"] and house.places.strangers == 0


def test_a_place_that_was_given_up_is_nobodys(house: House) -> None:
    """Its request may still be under way, and must not bring it back."""
    gone = house.take("192.0.2.1", "gone")
    for _ in range(4):
        house.take("192.0.2.1", "next")
    house.places.know(gone, "a")
    assert house.closed == ["gone"] and ("device", "a") not in house.places.groups


def test_a_network_of_ipv6_counts_as_one_address() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") != network_of("192.0.2.2")
    assert network_of("fe80::1%eth0") == network_of("fe80::2")
