"""What the learning process does: making models, and looking closely at pictures."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from offnominal.errors import ImageError, OptionError
from offnominal.station.inspection.models import file_digest
from offnominal.station.inspection.sight import Usual, look

__all__ = ["TASKS", "Told"]

_LOOKED_AT = 100  # references that say what pictures look like

Told = Callable[[str, int], None]


def _facts(detector: Any, path: Path) -> dict[str, Any]:
    """What a station records of a model's file."""
    from offnominal.detectors.networks import untrained

    options, threshold = detector.options(), detector.threshold
    pixel = detector.pixel_threshold
    known = detector.calibration
    facts = {
        "method": detector.method,
        "backbone": options.get("backbone"),
        "resolution": options.get("resolution"),
        "smoothing": detector.smoothing,
        "grows": hasattr(detector, "add") and getattr(detector, "no_growth", None) is None,
        "leave_one_out": detector.leave_one_out,
        "references": [
            {"file": one.file, "digest": one.digest, "size": list(one.size), "active": one.active}
            for one in detector.references
        ],
        "good_kind": known.kind,
        "good_scores": [float(score) for score in known.images],
        "good_references": list(known.numbers),
        "pixel_threshold": pixel.value if pixel else None,
        "threshold_kind": threshold.kind if threshold else None,
        "warning": detector.threshold_warning,
        "sight": _sight(detector),
        "untrained": untrained(detector),
    }
    if threshold and threshold.kind != "manual":
        facts["false_reject"] = threshold.false_reject
        facts["count"] = threshold.count
    return {
        "digest": file_digest(path),
        "threshold": threshold.value if threshold else None,
        "promise": str(threshold) if threshold else "",
        "facts": facts,
    }


def _sight(detector: Any) -> dict[str, Any] | None:
    """What its references look like, of those that are still there."""
    files = [one.file for one in detector.references if one.active and Path(one.file).is_file()]
    seen = []
    for file in files[:: max(1, -(-len(files) // _LOOKED_AT))]:
        try:
            seen.append(look(detector.image_of(file)))
        except ImageError:
            continue
    usual = Usual.of(seen)
    return usual.to_dict() if usual else None


class _Unreadable(list[list[str]]):
    """Pictures that were left out, with the reason of each."""

    def __call__(self, error: ImageError) -> None:
        self.append([error.source, error.reason])


def fit(told: Told, pictures: list[str], file: str, options: dict[str, Any]) -> dict[str, Any]:
    """A model from pictures of good parts; ``options`` are a method's, and ``method`` itself."""
    from offnominal.detectors.options import checked_options

    given = dict(options)
    from offnominal.detectors.registry import detector_class

    kind = detector_class(given.pop("method", "anomalydino"))
    detector = kind(**checked_options(kind, given))
    bad = _Unreadable()
    detector.fit([Path(one) for one in pictures], bad, told, when=datetime.now(UTC))
    return _kept(detector, file) | {"unreadable": bad, "copies": detector.copies}


def add(told: Told, model: str, pictures: list[str], file: str) -> dict[str, Any]:
    """A model that knows some more good parts."""
    detector, bad = _open(model), _Unreadable()
    change = detector.add([Path(one) for one in pictures], bad, told, when=datetime.now(UTC))
    more = {"unreadable": bad, "known": list(change.known), "images": list(change.images)}
    return _kept(detector, file) | more


def forget(told: Told, model: str, references: list[str], file: str) -> dict[str, Any]:
    """A model without some of its references."""
    detector = _open(model)
    change = detector.forget(references, when=datetime.now(UTC), progress=told)
    return _kept(detector, file) | {"images": list(change.images)}


def threshold(told: Told, model: str, value: float, file: str) -> dict[str, Any]:
    """A model with a threshold that somebody chose."""
    detector = _open(model)
    detector.set_threshold(value, datetime.now(UTC))
    return _kept(detector, file)


def facts(told: Told, model: str) -> dict[str, Any]:
    """What there is to record of a model's file."""
    return _facts(_open(model), Path(model))


def score(told: Told, model: str, pictures: list[str]) -> dict[str, Any]:
    """What a model says of pictures, in their order; of each that is unreadable why."""
    detector, found = _open(model), []
    for number, name in enumerate(pictures, start=1):
        try:
            one = detector.predict(Path(name))[0]
            found.append(
                {
                    "picture": name,
                    "score": one.score,
                    "is_anomalous": one.is_anomalous,
                    "p_value": one.p_value,
                }
            )
        except ImageError as error:
            found.append({"picture": name, "error": error.reason})
        told("predict", number)
    limit = detector.threshold
    return {"scores": found, "threshold": limit.value if limit else None}


def heat(told: Told, model: str, picture: str, file: str) -> dict[str, Any]:
    """The picture with the heat of its map laid over it, as a PNG file."""
    from offnominal.pictures import save_picture

    found = _open(model).predict(Path(picture))[0]
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    save_picture(Path(file), found.overlay())
    plain: dict[str, Any] = found.to_dict()
    return plain


def explain(told: Told, model: str, picture: str, file: str) -> dict[str, Any]:
    """The worst patches beside the nearest good ones, as a PNG file."""
    from offnominal.explain.explanation import explain as explained
    from offnominal.explain.picture import draw
    from offnominal.pictures import save_picture

    # References are found by their pixels, wherever they lie now: that of a picture among the
    # inspected ones follows from them, so all of those need not be read.
    places = [place for place in ("references",) if Path(place).is_dir()]
    found = explained(_open(model), Path(picture), references=places)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    save_picture(Path(file), draw(found))
    matches = [
        {
            "number": one.number,
            "score": one.score,
            "distance": one.distance,
            "box": list(one.box),
            "reference": one.origin.file,
        }
        for one in found.matches
    ]
    return found.prediction.to_dict() | {"matches": matches}


def _open(model: str) -> Any:
    import offnominal

    return offnominal.load(Path(model))


def _kept(detector: Any, file: str) -> dict[str, Any]:
    path = Path(file)
    if path.exists():
        raise OptionError(f"{file}: is there; each version is a new file")
    path.parent.mkdir(parents=True, exist_ok=True)
    detector.save(path)
    return _facts(detector, path)


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "fit": fit,
    "add": add,
    "forget": forget,
    "threshold": threshold,
    "facts": facts,
    "score": score,
    "heat": heat,
    "explain": explain,
}
