"""How many connections the front holds: for strangers, for one address, for one device."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

Group = tuple[str, str]  # what it is of, and which one

STRANGERS = 128  # connections that have not shown a device's signature, in all
OF_ONE_ADDRESS = 64  # of them from one address (of IPv6: one network of 64 bits)
OF_ONE_DEVICE = 16  # connections of one enrolled device, and so its requests at once; Flower uses four


@dataclass(eq=False)
class Place:
    """One connection: whose it is, and how it is closed."""

    group: Group
    close: Callable[[], None]


class Places:
    """Every connection has a place from its first byte on. A stranger's is one of few, an enrolled device has its own.

    Nobody is turned away at the door, for there a device is a stranger too. Where all places are taken, the oldest one
    is given up: of the same address where that has too many, else of the address that has most. A device shows its
    signature within milliseconds, and from then on no stranger can take its place.

    Formal guarantees:
        strangers_never_take_a_devices_place, one_address_leaves_places_for_others,
        a_device_has_no_more_places_than_its_own.
    """

    def __init__(self) -> None:
        self.groups: dict[Group, dict[Place, None]] = {}  # in the order of coming
        self.strangers = 0

    def take(self, host: str, close: Callable[[], None]) -> Place:
        """A stranger's place; where there is none, another stranger's is given up."""
        group = ("address", network_of(host))
        if len(self.groups.get(group, ())) >= OF_ONE_ADDRESS:
            self._give_up(group)
        elif self.strangers >= STRANGERS:
            self._give_up(max(self._of_strangers(), key=lambda crowd: len(self.groups[crowd])))
        place = Place(group, close)
        self._add(place)
        return place

    def know(self, place: Place, device: str) -> None:
        """This connection is the device's from now on."""
        if place.group == ("device", device) or place not in self.groups.get(place.group, ()):
            return
        self.leave(place)
        place.group = ("device", device)
        if len(self.groups.get(place.group, ())) >= OF_ONE_DEVICE:
            self._give_up(place.group)
        self._add(place)

    def leave(self, place: Place) -> None:
        """The connection is gone, or given up."""
        crowd = self.groups.get(place.group, {})
        if place not in crowd:
            return
        del crowd[place]
        if not crowd:
            del self.groups[place.group]
        self.strangers -= place.group[0] == "address"

    def _add(self, place: Place) -> None:
        self.groups.setdefault(place.group, {})[place] = None
        self.strangers += place.group[0] == "address"

    def _of_strangers(self) -> list[Group]:
        return [group for group in self.groups if group[0] == "address"]

    def _give_up(self, group: Group) -> None:
        oldest = next(iter(self.groups[group]))
        self.leave(oldest)
        oldest.close()


def network_of(host: str) -> str:
    """What counts as one address: whoever has one of IPv6 has all of its last 64 bits."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)
