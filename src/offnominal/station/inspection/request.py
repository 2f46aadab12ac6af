"""A picture that is to be judged."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from offnominal.errors import OffnominalError

__all__ = ["BusyError", "NotStoredError", "Request"]


class BusyError(OffnominalError):
    """The queue is full: nothing was accepted, and nothing is stored.

    Parameters
    ----------
    retry_after : float
        Seconds after which there should be room.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__("the station's queue is full; try again")
        self.retry_after = retry_after


class NotStoredError(OffnominalError):
    """What was found could not be written down, so nothing was accepted and nobody was told.

    The one thing that no fail-safe decision covers: the sender must take it for a stop.
    """


@dataclass(frozen=True)
class Request:
    """A picture, and what came with it.

    Attributes
    ----------
    id : str
        The sender's own id of this request, up to 200 characters. A second request with the same
        id gets the first one's result and changes nothing.
    product : int
    image : bytes
        The file's content, as it arrived; None where a source could not even deliver one.
    source : str
        ``http``, or the name of a source in the settings.
    serial : str or None
        The part's serial number, up to 200 characters.
    meta : dict
        Whatever else came with it, as JSON takes it.
    received : datetime
    deadline : float or None
        Seconds from its arrival; None: the product's, or the station's.
    trouble : str
        Why there is no image, or why the image cannot be judged although it is there: it is kept.
    fresh : bool
        Whether the id was made here just now, so that nothing of it can be stored yet.
    """

    id: str
    product: int
    image: bytes | None
    source: str = "http"
    serial: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    received: datetime = field(default_factory=lambda: datetime.now(UTC))
    deadline: float | None = None
    trouble: str = ""
    fresh: bool = False
