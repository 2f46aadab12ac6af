"""What others are told of an inspection: one row of plain values, the same on every output."""

from typing import Any

from sqlalchemy.orm import Session

from offnominal.station.store.tables import Inspection

__all__ = ["COLUMNS", "message", "read_message"]

COLUMNS = (
    *("id", "request", "product", "recipe", "version", "source", "serial", "received"),
    *("finished", "verdict", "told", "reason", "score", "threshold", "p_value", "regions"),
    *("brightness", "sharpness", "milliseconds", "label", "kind", "meta"),
)
"""Names of a message's fields, in their order, which is that of columns in files."""


def message(inspection: Inspection) -> dict[str, Any]:
    """An inspection whose session is open, or whose product and version were read with it.

    ``product`` is its name, ``recipe`` its number or None, ``version`` the model's number within
    the product or None; times are ISO 8601 in UTC; ``regions`` as ``Prediction.to_dict`` has them;
    the other fields are the record's own.
    """
    found = {
        "product": inspection.product.name,
        "recipe": inspection.product.number,
        "version": inspection.version.number if inspection.version else None,
        "received": inspection.received.isoformat(),
        "finished": inspection.finished.isoformat(),
    }
    return {n: found[n] if n in found else getattr(inspection, n) for n in COLUMNS}


def read_message(session: Session, inspection: int) -> dict[str, Any] | None:
    """The message of a stored inspection; None if it is no more."""
    found = session.get(Inspection, inspection)
    return None if found is None else message(found)
