"""Keys, certificates and the TLS front of the real federation."""

from __future__ import annotations

import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from support.command import fedcar

pytest.importorskip("flwr")

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from support.served import one_line  # noqa: E402

from fedcar.errors import FedcarError  # noqa: E402
from fedcar.federation.deploy import keys  # noqa: E402
from fedcar.federation.deploy import server as deploy  # noqa: E402
from fedcar.federation.deploy.folder import ServerFolder  # noqa: E402

pytest_plugins = ("support.served",)


# -------------------------------------------------------------------- keys


def test_a_private_key_is_readable_by_its_owner_alone_and_never_written_over(tmp_path: Path) -> None:
    result = fedcar("keygen", "--node", "hospital-a", "--out", tmp_path)
    assert result.code == 0 and "fedcar enroll hospital-a.pub" in result.out
    private = tmp_path / "hospital-a.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes()
    assert "is there already" in one_line(fedcar("keygen", "--node", "hospital-a", "--out", tmp_path))
    assert private.read_bytes() == before
    key = keys.read_private(private)
    assert key.curve.name == "secp384r1"
    name, public = keys.read_public(tmp_path / "hospital-a.pub")
    assert name == "hospital-a" and public == keys.public_bytes(key.public_key())
    assert b"PRIVATE" not in (tmp_path / "hospital-a.pub").read_bytes()


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b", "ä", "-a", "x" * 64])
def test_a_name_that_is_no_name_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    assert "--node" in one_line(fedcar("keygen", f"--node={name}", "--out", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_public_key_is_refused(tmp_path: Path, place: ServerFolder) -> None:
    (tmp_path / "text.pub").write_text("ssh-rsa nothing me\n")
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    line = other.public_bytes(keys.OPENSSH, keys.serialization.PublicFormat.OpenSSH)
    (tmp_path / "curve.pub").write_bytes(line + b" me\n")
    for file, says in (("text.pub", "not the .pub file"), ("curve.pub", "P-384"), ("none.pub", "cannot be read")):
        assert says in one_line(fedcar("enroll", tmp_path / file, "--data-dir", place.folder))


# -------------------------------------------------------------------- certificates


def test_certificates_are_made_once_and_again_before_they_run_out(place: ServerFolder) -> None:
    before = {name: (place.folder / name).read_bytes() for name in ("ca.pem", "link.pem", "front.pem")}
    for name in ("ca.key", "link.key", "front.key", "secret"):
        assert stat.S_IMODE((place.folder / name).stat().st_mode) == 0o600
    keys.make_authority(place.folder)
    keys.make_certificate(place.folder, "link", deploy.LOOPBACK)
    assert before == {name: (place.folder / name).read_bytes() for name in before}
    keys.make_certificate(place.folder, "link", ["elsewhere.example"])
    assert (place.folder / "link.pem").read_bytes() != before["link.pem"], "another host needs another certificate"
    keys.make_certificate(place.folder, "short", ["127.0.0.1"], days=10)
    short = (place.folder / "short.pem").read_bytes()
    keys.make_certificate(place.folder, "short", ["127.0.0.1"])
    assert (place.folder / "short.pem").read_bytes() != short and keys.days_left(place.folder / "short.pem") > 800


def test_a_crash_while_a_certificate_is_written_leaves_none(
    place: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a one would end every later start: it cannot be read, and is not made again."""

    def torn(file: Path, content: bytes) -> None:
        with file.open("wb") as stream:
            stream.write(content[:40])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "write_bytes", torn)
        keys.make_certificate(place.folder, "link", ["elsewhere.example"])
    assert not (place.folder / "link.pem").exists()
    keys.make_certificate(place.folder, "link", ["elsewhere.example"])
    assert keys.hosts_of(place.folder / "link.pem") == ["elsewhere.example"]


def test_a_certificate_is_signed_by_the_folders_authority(place: ServerFolder) -> None:
    authority = x509.load_pem_x509_certificate(place.ca.read_bytes())
    front = x509.load_pem_x509_certificate((place.folder / "front.pem").read_bytes())
    front.verify_directly_issued_by(authority)
    assert set(keys.hosts_of(place.folder / "front.pem")) >= {"127.0.0.1"}


def test_a_stale_certificate_of_ones_own_is_refused(place: ServerFolder, tmp_path: Path) -> None:
    keys.make_certificate(place.folder, "stale", ["127.0.0.1"], days=-3)
    given = (place.folder / "stale.pem", place.folder / "stale.key", place.ca)
    with pytest.raises(FedcarError, match=r"stale.pem: ran out 3 days ago; give a new one"):
        deploy.front_certificate(place, "127.0.0.1", given)
    keys.make_certificate(place.folder, "other", ["other.example"])
    with pytest.raises(FedcarError, match=r"is not for 127.0.0.1"):
        deploy.front_certificate(place, "127.0.0.1", (place.folder / "other.pem", place.folder / "other.key", place.ca))


def test_expiry_is_counted_in_days(place: ServerFolder) -> None:
    loaded = x509.load_pem_x509_certificate(place.ca.read_bytes())
    assert loaded.not_valid_after_utc - datetime.now(timezone.utc) > timedelta(days=3600)
    assert keys.days_left(place.ca) == pytest.approx(3650, abs=1)
