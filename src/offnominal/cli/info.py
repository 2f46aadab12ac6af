"""``offnominal info``: what a model file holds."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from offnominal.cli import options
from offnominal.cli.terminal import count, tell
from offnominal.errors import ModelFileError

if TYPE_CHECKING:
    from offnominal.calibration import Threshold
    from offnominal.cli.card import Card
    from offnominal.detectors.base import Detector

_KINDS = {"patch": "pasted patches", "scar": "scars"}


def info(
    model: options.Model, as_json: options.Json = False, weights: options.Weights = None
) -> None:
    """Say what a model is: method, backbone, options, references, bank and threshold."""
    options.check_given(model, (), "info", weights)
    from offnominal.cli.card import Card

    card = Card(model, weights)
    header = card.header
    chosen = card.options() | ({"weights": weights} if weights else {})
    history = card.references.history()
    steps = [step.what for step in history]
    if as_json:
        several = len(card.categories) > 1
        threshold = None if several else card.threshold
        facts = {
            "version": header["version"],
            "method": card.method,
            "backbone": header.get("backbone") or [one["backbone"] for one in _networks(header)],
            "options": chosen,
            "references": len(card.references.active),
            "patches": card.bank_rows,
            "calibration": card.good.in_force.kind,
            "threshold": _plain(threshold),
            "categories": {
                one.category: {"images": _images(one), "threshold": _plain(one.threshold)}
                for one in card.each_category()
                if several
            },
            "search": getattr(card, "search_", None),
            "mask": getattr(card, "masks_", None),
            "rotations": getattr(card, "rotations_", None),
            "synthetic_defects": [
                {**cell._asdict(), "missed": missed, "made": made}
                for cell, missed, made in ([] if several else card.missed_defects)
            ],
            "steps": steps,
            "export": header.get("export"),
            "known_defects": header.get("known", {}).get("defects", []),
        }
        typer.echo(json.dumps(facts, indent=1))
        return
    typer.echo(f"{model}: {card.method}, written by Offnominal {header['version']}")
    defaults = card.option_defaults
    told = [f"{name}={value}" for name, value in chosen.items()
            if name not in ("backbone", "weights") and value != defaults.get(name)]  # fmt: skip
    tell(
        *describe(card, header),
        *describe_tests(card),
        *_describe_export(header),
        ("", card.calibration_note),
        ("options", ", ".join(told)),
        ("references", str(len(card.references.active))),
        ("history", ", ".join(f"{step.what} {(step.when or '')[:10]}".strip() for step in history)),
        ("size", f"{model.stat().st_size / 1e6:.1f} MB"),
        out=typer.echo,
    )


def _plain(threshold: "Threshold | None") -> dict[str, Any] | None:
    """A threshold as JSON has it; nothing is known of the rate of a guess, or of one by hand."""
    if threshold is None or threshold.kind not in ("guess", "manual"):
        return None if threshold is None else asdict(threshold)
    return asdict(threshold) | {"false_reject": None}


def _describe_export(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an exported model carries, and how it compared with the one that was fitted."""
    if "export" not in header:
        return []
    from offnominal.detectors.deployed import read_section

    section = read_section(header["export"])
    facts = section.facts
    what = f"{section.kind} of {facts.size / 1e6:.1f} MB, opset {facts.opset}, {facts.precision}"
    licence = f"; the weights' licence: {section.licence}" if section.licence else ""
    found = [("exported", what + licence)]
    if section.gate is not None:
        found.append(("", f"float32 -> int8, {section.compared}: {section.gate}"))
    for row in section.parity:
        told = (
            f"scores within {row.score:.1e}, maps {row.map:.1e}, {row.decisions} decided otherwise"
        )
        on = section.compared or count(row.images, "image")
        found.append(("", f"{row.engine} {row.precision}, {on}: {told}"))
    return found


def describe_tests(detector: "Detector | Card") -> list[tuple[str, str]]:
    """What the tests of mask and rotations found, where a method has them."""
    rows = []
    if (masked := getattr(detector, "masks_", None)) is not None:
        test = getattr(detector, "masking_test_", None)
        rows.append(("mask", ("on" if masked else "off") + (_reason(test) if test else "")))
    if test := getattr(detector, "orientation_test_", None):
        rows.append(("rotations", f"{getattr(detector, 'rotations_', '')}{_reason(test)}"))
    return rows


def _reason(test: object) -> str:
    if not isinstance(test, dict) or not isinstance(test.get("reason"), str):
        raise ModelFileError("a test of mask or rotations says no reason; fit the model anew")
    return f" ({test['reason']})"


def describe(detector: "Detector | Card", header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a detector compares with and decides by, and the backbones that its header names."""
    found = [one["backbone"] for one in _networks(header)]
    names = (f"{one['name']}" + f", digest {one['digest'][:12]}" * bool(one["digest"])
             for one in found)  # fmt: skip
    storage = getattr(detector, "storage", "fp32")
    rows = f"{detector.bank_rows:,} patches{'' if storage == 'fp32' else f' as {storage}'}"
    return [
        ("backbone", "; ".join(names)),
        ("", "; ".join(one["note"] for one in found if one.get("note"))),
        ("bank", rows if detector.bank_rows else ""),
        ("search", _search(getattr(detector, "search_", None))),
        ("training", _training(detector)),
        ("defects", _defects(detector)),
        *describe_known(header),
        *describe_decisions(detector),
    ]


def _search(found: Mapping[str, Any] | None) -> str:
    """How near an inverted file comes to an exact search; empty where there is none."""
    if found is None:
        return ""
    if not found["cells"]:
        return "exact: of so few patches no index is faster"
    return (
        f"{found['probes']} of {found['cells']:,} cells; of {found['queries']} patches held back "
        f"{100 * found['recall']:.4g} % found their nearest, distances {100 * found['change']:.2g} "
        f"% longer on average, {100 * found['most']:.2g} % at most"
    )


def _training(detector: "Detector | Card") -> str:
    """How long a detector was trained, and on what; empty where it was not."""
    if not (steps := getattr(detector, "steps_", 0)):
        return ""
    held, chosen = (len(getattr(detector, name)) for name in ("held_back_", "chosen_by_"))
    known = count(len(detector.references.active) - held - chosen, "good image")
    aside = f"{held} more held back" + (f", {chosen} to choose by" if chosen else "")
    return f"{count(steps, 'step')} on {known}, {aside}"


def describe_known(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The defects that a model knows on top of good images, and how far it trusts them."""
    if not (told := header.get("known")):
        return []
    gain = told["gain"]
    if told["before"]:
        words = f"a layer changes scores: left out of it, they outrank {100 * gain:.2g} % more of "
        words += "the good images"
    else:
        words = "they name classes, and scores are as without: " + (
            "a layer that had not seen them ranked them no surely higher"
            if gain is not None
            else "with fewer than 3 defective parts, or 8 good images, nothing more can be tested"
        )
    return [("known", f"{_listed(told['defects'])}; {words}")]


def _defects(detector: "Detector | Card") -> str:
    """The defective images that it was trained on, by class; empty where there were none."""
    known = (getattr(detector, "labels_", None) or {}).get("defects", [])
    return _listed(known) if known else ""


def _listed(known: list[Mapping[str, Any]]) -> str:
    """Defective images by class."""
    kinds = Counter(kind for one in known for kind in one["kinds"])
    marked = sum(one["marked"] for one in known)
    listed = ", ".join(f"{name} {number}" for name, number in sorted(kinds.items()))
    return f"{count(len(known), 'defective image')}, {marked} of them marked: {listed}"


def not_inspected(detector: "Detector", sizes: Counter[tuple[int, int]]) -> list[str]:
    """What is never looked at of images of some sizes (H, W), most images first."""
    alike: dict[str, list[tuple[int, int]]] = {}
    for size, _ in sizes.most_common():
        if words := detector.not_inspected(size):
            alike.setdefault(words, []).append(size)
    return [
        f"of {count(sum(sizes[each] for each in own), 'image')} of "
        + (f"{own[0][1]} x {own[0][0]} pixels" if len(own) == 1 else f"{len(own)} sizes")
        + f", {words}"
        for words, own in alike.items()
    ]


def _images(detector: "Detector | Card") -> int:
    """How many references are of its category."""
    return sum(one.active and one.category == detector.category for one in detector.references)


def describe_threshold(detector: "Detector | Card") -> str:
    """What the detector's threshold promises, in words."""
    if detector.threshold is not None:
        return str(detector.threshold)
    known = count(len(detector.calibration), "good image")
    if len(detector.calibration) and not detector.calibration.images.any():
        return f"none: {known} all score 0, so that nothing is told apart"
    if detector.false_reject != "auto" and len(detector.calibration):
        return (
            f"none: {known} can neither promise nor estimate {detector.false_reject:g} of good "
            "parts; ask for --false-reject auto, or give more"
        )
    return (
        f"none: {known} to set it by; run `offnominal calibrate` with good images that it has not "
        "learned from"
    )


def describe_decisions(detector: "Detector | Card") -> list[tuple[str, str]]:
    """The threshold, and what it would pass of synthetic defects; or each category's."""
    if len(each := detector.each_category()) > 1:
        return [
            (str(one.category), f"{count(_images(one), 'image')}; {describe_threshold(one)}")
            for one in each
        ]
    found = detector.missed_defects
    kinds: dict[str, list[str]] = {}
    for cell, missed, made in found:
        kinds.setdefault(cell.kind, []).append(f"{cell.size} {missed} of {made}")
    words = "; ".join(f"{_KINDS[kind]}: {', '.join(cells)}" for kind, cells in kinds.items())
    outdated = (
        ""
        if found or not len(detector.good.defects) or not detector.decides
        else ("not known of these references: fit anew to have synthetic defects scored by them")
    )
    total = f"{sum(each.missed for each in found)} of {sum(each.made for each in found)}"
    return [
        ("threshold", describe_threshold(detector)),
        ("would pass", f"{total} synthetic defects ({words})" if found else outdated),
        ("", f"WARNING: {warning}" if (warning := detector.threshold_warning) else ""),
    ]


def _networks(header: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Headers of the parts that have a backbone: the detector, an ensemble's members, or none."""
    return [one for one in header.get("members", [header]) if "backbone" in one]
