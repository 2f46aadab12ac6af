"""Where a station may listen."""

import subprocess
from pathlib import Path

import pytest

from offnominal.errors import OptionError
from offnominal.station.access.accounts import create_user
from offnominal.station.access.listening import check_listening
from offnominal.station.access.log_in import LogInError, log_in
from offnominal.station.access.setup import setup_code
from offnominal.station.settings import Settings
from offnominal.station.station import Station
from tests.station.conftest import PASSWORD


@pytest.fixture
def station(settings: Settings) -> Station:
    return Station(settings)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=line3", "-days", "2", "-keyout", key, "-out", cert]  # type: ignore[list-item]  # paths
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_is_always_served(station: Station, host: str) -> None:
    assert check_listening(station.settings.model_copy(update={"host": host}), station) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "line3", ""])
def test_others_are_served_when_there_are_accounts(
    station: Station, host: str, pair: tuple[Path, Path]
) -> None:
    open_ = station.settings.model_copy(update={"host": host})
    with_tls = open_.model_copy(update={"tls_cert": pair[0], "tls_key": pair[1]})
    for settings in (open_, with_tls):
        with pytest.raises(OptionError, match="no account yet"):
            check_listening(settings, station)
    with station.database.writing() as session:
        create_user(session, "ada", PASSWORD, "admin")
    told = check_listening(open_, station)
    assert told is not None
    assert "--tls-cert" in told
    assert check_listening(with_tls, station) is None


def test_certificates_that_do_not_do(
    station: Station, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "x").write_text("x")
    for cert, key in [
        *((pair[0], None), (None, pair[1]), (pair[1], pair[0]), (pair[0], tmp_path / "x")),
        *((pair[0], tmp_path / "missing"), (tmp_path, pair[1])),
    ]:
        settings = station.settings.model_copy(update={"tls_cert": cert, "tls_key": key})
        with pytest.raises(OptionError, match="--tls-cert"):
            check_listening(settings, station)


def test_a_container_gets_its_account_from_a_file(station: Station, tmp_path: Path) -> None:
    file = tmp_path / "password"
    station.settings.admin_password_file = file
    station.settings.host = "0.0.0.0"
    for content in (None, b"short", b"\xff" * 20, b"admin12345"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(OptionError, match="admin_password_file"):
            check_listening(station.settings, station)
    file.write_text(PASSWORD + "\n")
    assert check_listening(station.settings, station) is not None
    with pytest.raises(LogInError):
        log_in(station, "10.0.0.1", "admin", PASSWORD + "\n")
    assert log_in(station, "10.0.0.1", "admin", PASSWORD).name == "admin"
    file.write_text("another password")
    check_listening(station.settings, station)
    assert log_in(station, "10.0.0.1", "admin", PASSWORD).name == "admin"
    assert setup_code(station) is None
