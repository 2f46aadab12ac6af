"""``offnominal info``: what a model file holds."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from offnominal.cli import options
from offnominal.cli.terminal import count, tell

if TYPE_CHECKING:
    from offnominal.calibration import Threshold
    from offnominal.detectors.base import Detector

_KINDS = {"patch": "pasted patches", "scar": "scars"}


def info(
    model: options.Model, as_json: options.Json = False, weights: options.Weights = None
) -> None:
    """Say what a model is: method, backbone, options, references, bank and threshold."""
    from offnominal.detectors.registry import load
    from offnominal.modelfile import read_header

    header, detector = read_header(model), load(model, weights, "cpu")
    steps = [step.what for step in detector.history()]
    if as_json:
        several = len(detector.categories) > 1
        threshold = None if several else detector.threshold
        facts = {
            "version": header["version"],
            "method": detector.method,
            "backbone": header.get("backbone") or [one["backbone"] for one in _networks(header)],
            "options": detector.options(),
            "references": len(detector.references.active),
            "patches": detector.bank_rows,
            "calibration": detector.good.in_force.kind,
            "threshold": _plain(threshold),
            "categories": {
                one.category: {"images": _images(one), "threshold": _plain(one.threshold)}
                for one in detector.each_category()
                if several
            },
            "mask": getattr(detector, "masks_", None),
            "rotations": getattr(detector, "rotations_", None),
            "synthetic_defects": [
                {**cell._asdict(), "missed": missed, "made": made}
                for cell, missed, made in ([] if several else detector.missed_defects)
            ],
            "steps": steps,
        }
        typer.echo(json.dumps(facts, indent=1))
        return
    typer.echo(f"{model}: {detector.method}, written by Offnominal {header['version']}")
    defaults = detector.option_defaults()
    chosen = [f"{name}={value}" for name, value in detector.options().items()
              if name not in ("backbone", "weights") and value != defaults[name]]  # fmt: skip
    tell(
        *describe(detector, header),
        *describe_tests(detector),
        ("", detector.calibration_note),
        ("options", ", ".join(chosen)),
        ("references", str(len(detector.references.active))),
        ("history", ", ".join(steps)),
        ("size", f"{model.stat().st_size / 1e6:.1f} MB"),
        out=typer.echo,
    )


def _plain(threshold: "Threshold | None") -> dict[str, Any] | None:
    """A threshold as JSON has it; nothing is known of the rate of a guess."""
    if threshold is None or threshold.kind != "guess":
        return None if threshold is None else asdict(threshold)
    return asdict(threshold) | {"false_reject": None}


def describe_tests(detector: "Detector") -> list[tuple[str, str]]:
    """What the tests of mask and rotations found, where a method has them."""
    rows = []
    if (masked := getattr(detector, "masks_", None)) is not None:
        test = getattr(detector, "masking_test_", None)
        rows.append(
            ("mask", ("on" if masked else "off") + (f" ({test['reason']})" if test else ""))
        )
    if test := getattr(detector, "orientation_test_", None):
        rows.append(("rotations", f"{getattr(detector, 'rotations_', '')} ({test['reason']})"))
    return rows


def describe(detector: "Detector", header: Mapping[str, Any]) -> list[tuple[str, str]]:
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
        ("training", _training(detector)),
        *describe_decisions(detector),
    ]


def _training(detector: "Detector") -> str:
    """How long a detector was trained, and on what; empty where it was not."""
    if not (steps := getattr(detector, "steps_", 0)):
        return ""
    held, chosen = (len(getattr(detector, name)) for name in ("held_back_", "chosen_by_"))
    known = count(len(detector.references.active) - held - chosen, "good image")
    aside = f"{held} more held back" + (f", {chosen} to choose by" if chosen else "")
    return f"{count(steps, 'step')} on {known}, {aside}"


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


def _images(detector: "Detector") -> int:
    """How many references are of its category."""
    return sum(one.active and one.category == detector.category for one in detector.references)


def describe_threshold(detector: "Detector") -> str:
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


def describe_decisions(detector: "Detector") -> list[tuple[str, str]]:
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
