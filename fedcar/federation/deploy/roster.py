"""Which device a request is of, by its headers alone."""

from __future__ import annotations

import binascii
import hashlib
from base64 import b64decode
from collections.abc import Mapping
from datetime import datetime, timezone

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedcar.federation.deploy.folder import ServerFolder
from fedcar.federation.wire.flower import CLOCK_AHEAD, CLOCK_BEHIND, CLOCK_LINE, SIGNED_BY


class Unknown(Exception):
    """Not an enrolled device's request, or not one of now; says why."""


class Roster:
    """The devices that were let in, as nodes.json says now: it is read again when it changes.

    Flower's devices send their public key, the time, and a signature of that time, all in headers. So who sends a
    request is known before a byte of its body is read.

    Formal guarantees:
        a_device_that_is_enrolled_or_taken_out_counts_at_once.
    """

    def __init__(self, place: ServerFolder) -> None:
        self.place = place
        self.read: tuple[int, int, int] | None = None
        self.names: dict[str, str] = {}
        self.keys: dict[str, ec.EllipticCurvePublicKey] = {}

    def device_of(self, headers: Mapping[str, str]) -> str:
        """The name of the device that signed this request just now; Unknown where none did."""
        self._read()
        try:
            pem, signature = (b64decode(headers[SIGNED_BY[name]], validate=True) for name in ("key", "signature"))
            time = headers[SIGNED_BY["time"]]
            der = b64decode(b"".join(pem.split(b"\n")[1:-2]), validate=True)
        except (KeyError, ValueError, binascii.Error) as error:
            raise Unknown("not signed by an enrolled device") from error
        fingerprint = hashlib.sha256(der).hexdigest()  # as keys.key_fingerprint, and nobody's key is parsed
        if (name := self.names.get(fingerprint)) is None:
            raise Unknown("no enrolled device has this key")
        if fingerprint not in self.keys:
            key = serialization.load_der_public_key(der)
            assert isinstance(key, ec.EllipticCurvePublicKey)  # enrolling lets in no other
            self.keys[fingerprint] = key
        try:
            self.keys[fingerprint].verify(signature, time.encode("ascii"), ec.ECDSA(hashes.SHA256()))
            ahead = (datetime.fromisoformat(time) - datetime.now(timezone.utc)).total_seconds()
        except (InvalidSignature, ValueError, TypeError, OverflowError) as error:
            raise Unknown("the signature is not of this key") from error
        if not -CLOCK_BEHIND < ahead < CLOCK_AHEAD:
            raise Unknown(clock_line(ahead))
        return name

    def _read(self) -> None:
        """Where the file cannot be read now, the devices of before count."""
        try:
            status = self.place.nodes_file.stat()
            now = status.st_mtime_ns, status.st_size, status.st_ino
            if now != self.read:
                self.names = {str(node["key"]): name for name, node in self.place.nodes().items()}
                self.keys, self.read = {}, now
        except FileNotFoundError:
            self.names, self.keys, self.read = {}, {}, None
        except (OSError, ValueError):
            return


def clock_line(ahead: float) -> str:
    """What is wrong with a clock that is so many seconds ahead of the server's."""
    says = f"{ahead:.0f} s ahead of" if ahead > 0 else f"{-ahead:.0f} s behind"
    return (
        f"{CLOCK_LINE} {says} the server's; at most {CLOCK_AHEAD:.0f} s ahead and {CLOCK_BEHIND:.0f} s behind are taken"
    )
