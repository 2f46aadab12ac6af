"""Whether a station may listen where it is told to."""

import ssl

from offnominal.errors import OptionError
from offnominal.station.access.accounts import any_account
from offnominal.station.access.limits import is_local
from offnominal.station.access.setup import admin_of_file
from offnominal.station.settings import Settings
from offnominal.station.station import Station

__all__ = ["check_listening"]


def check_listening(settings: Settings, station: Station) -> str | None:
    """See that nobody can walk in from elsewhere; makes the account that a file asks for.

    Returns
    -------
    str or None
        A warning to print: that what passes the network can be read.

    Raises
    ------
    OptionError
        If it would be reached from elsewhere and has no account yet, or its certificate or key is
        missing, unreadable, or does not fit the other.
    """
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise OptionError("--tls-cert and --tls-key: one without the other; give both, or neither")
    if settings.tls_cert is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                settings.tls_cert, settings.tls_key, password=_no_password
            )
        except (OSError, ValueError) as error:
            raise OptionError(
                f"--tls-cert {settings.tls_cert}, --tls-key {settings.tls_key}: cannot be used "
                f"({error}); give a certificate and its key, without a password, as PEM files"
            ) from error
    admin_of_file(station)
    if is_local(settings.host):
        return None
    with station.database.reading() as session:
        ready = any_account(session)
    if not ready:
        raise OptionError(
            f"--host {settings.host}: reached from elsewhere, and there is no account yet: start "
            "once without --host and make the first account in a browser on this machine, or name "
            "a file with its password under `admin_password_file`"
        )
    if settings.tls_cert is None:
        return (
            f"--host {settings.host} without TLS: put a proxy with TLS in front (examples/station "
            "has Caddy's and nginx's), or give --tls-cert and --tls-key; browsers elsewhere "
            "cannot log in without"
        )
    return None


def _no_password() -> str:
    raise ValueError("the key has a password")
