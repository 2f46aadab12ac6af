"""Counting guesses: so many within a time, from an address."""

import ipaddress
import threading
import time
from collections import OrderedDict, deque

__all__ = ["Attempts", "Guesses", "origin"]


class Attempts:
    """What was tried of late, by key.

    Parameters
    ----------
    most : int
        That many within `seconds` are let through.
    seconds : float
    keys : int
        So many keys are remembered; of more the oldest is forgotten, so that memory is bounded.
    """

    def __init__(self, most: int, seconds: float, keys: int = 10_000) -> None:
        self.most, self.seconds, self.keys = most, seconds, keys
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Count a guess before it is looked at, so that many at once are many.

        Returns
        -------
        float
            0, or the seconds after which it may be tried again; then it was not counted.
        """
        now = time.monotonic()
        with self._lock:
            times = self._times.setdefault(key, deque())
            self._times.move_to_end(key)
            while times and times[0] <= now - self.seconds:
                times.popleft()
            if len(times) >= self.most:
                return times[0] + self.seconds - now
            times.append(now)
            while len(self._times) > self.keys:
                self._times.popitem(last=False)
            return 0.0

    def back(self, key: str) -> None:
        """Take the last guess back: it was right."""
        with self._lock:
            if times := self._times.get(key):
                times.pop()


class Guesses:
    """What a station counts: set-up codes and log-ins by address, log-ins by name, passwords.

    ``known`` are browsers that were here before, ``own`` people who change their password.
    """

    def __init__(self) -> None:
        self.setup = Attempts(10, 300)
        self.log_in = Attempts(10, 300)
        self.names = Attempts(5, 30)
        self.known = Attempts(10, 300)
        self.own = Attempts(10, 300)


def origin(address: str) -> str:
    """What guesses are counted by: an IPv4 address, or the /64 that one household of IPv6 has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
