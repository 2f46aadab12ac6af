"""Passwords: kept as argon2id's hashes, compared two at a time."""

import threading
import unicodedata
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

__all__ = ["hashed", "is_outdated", "matches", "waste_time"]

# The smallest that OWASP recommends for argon2id. A station judges parts on the same cores and in
# the same memory, and its log-ins are limited in number.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
# However many try to log in at once, no more than this is computed, or taken of the memory.
_TWO = threading.BoundedSemaphore(2)


def hashed(password: str) -> str:
    """The hash to keep, with its parameters and a salt of its own."""
    with _TWO:
        return _HASHER.hash(_normal(password))


def matches(hash: str, password: str) -> bool:
    """Whether this is the password; False too for a hash that is none."""
    with _TWO:
        try:
            return _HASHER.verify(hash, _normal(password))
        except (VerificationError, InvalidHashError):
            return False


def is_outdated(hash: str) -> bool:
    """Whether a hash was made with other parameters than today's, and is to be made anew."""
    return _HASHER.check_needs_rehash(hash)


def waste_time(password: str) -> None:
    """Take as long as :func:`matches` does, where there is no hash to compare with."""
    matches(_nobody(), password)


@cache
def _nobody() -> str:
    return hashed("nobody")


def _normal(password: str) -> str:
    # The same characters, however a keyboard or a system composes them.
    return unicodedata.normalize("NFKC", password)
