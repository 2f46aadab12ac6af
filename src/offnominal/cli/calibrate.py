"""``offnominal calibrate``: thresholds from more good images, and the miss rate on defects."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from offnominal.cli import options
from offnominal.cli.info import describe_decisions, describe_threshold
from offnominal.cli.terminal import Unreadable, count, progress_bar, say, tell
from offnominal.errors import OptionError
from offnominal.text import digits, printable

if TYPE_CHECKING:
    from datetime import datetime

    from offnominal.calibration import Threshold


def calibrate(
    model: options.Model,
    good: Annotated[list[str] | None, "GOOD_DIR..."] = None,
    defects: list[str] | None = None,
    output: options.Output = None,
    false_reject: str | None = None,
    threshold: float | None = None,
    cost_miss: float | None = None,
    cost_reject: float = 1.0,
    defect_rate: float | None = None,
    when: options.When = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    endpoint: options.Endpoint = None,
    key_variable: options.KeyVariable = None,
    strict: options.Strict = False,
) -> None:
    """Refine a model's thresholds with more good images, or set the threshold by hand.

    Parameters
    ----------
    good : list of str or None
        Good images that it has not learned from: files, folders, globs, or the opinions.json that
        a results page saves; what is noted there as to be rejected counts as --defects. None with
        --threshold.
    defects : list of str or None
        Folder or quoted glob of defective parts, to report the miss rate; repeatable.
    false_reject : rate or "auto"
        Rate of good parts that may be rejected; else as it was fitted.
    threshold : float or None
        Set the threshold of the image score to this, whatever good parts score. No rate is promised
        then.
    cost_miss : float or None
        Set the threshold by costs: what a defect that passes costs, in the unit of --cost-reject.
        Takes --defects and --defect-rate; good images, if given, are scored first.
    cost_reject : float
        What a good part that is rejected costs.
    defect_rate : float or None
        Share of the parts on the line that are defective, as 0.01.
    """
    from offnominal.opinions import sort_out
    from offnominal.paths import PassedOver, find_images

    options.check_given(model, good or [], "calibrate", weights, device, engine)
    options.check_model(output or model)
    rate = None if false_reject is None else options.read_rate(false_reject)
    time, passed = options.read_when(when), PassedOver()
    by_cost = _costs(cost_miss, cost_reject, defect_rate, defects, threshold)
    if threshold is None and not good and not by_cost:
        raise OptionError(
            "calibrate: give folders or files of good images, as `offnominal calibrate "
            f"{model} more-good/`, or --threshold VALUE to set it by hand"
        )
    if threshold is not None:
        options.check_threshold(threshold)
        if good or rate is not None:
            other = "good images" if good else "--false-reject"
            raise OptionError(
                f"--threshold {threshold:g}: sets the threshold by hand, {other} would set it "
                "otherwise; give one of the two"
            )
    noted = sort_out(good or [])
    if good and not noted.good:
        raise OptionError(f"{', '.join(good)}: no image is noted as good, to calibrate with")
    files = find_images(noted.good, passed) if good else []
    named = [*(defects or []), *noted.defective]
    defective = find_images(named, passed) if named else []
    shared = {file.absolute().parent for file in files} & {f.absolute().parent for f in defective}
    if shared and not noted.noted:
        raise OptionError(
            f"--defects: good and defective images both come from {shared.pop()}; name folders, or "
            "quote the pattern so that the shell does not take it apart"
        )
    with options.changing(output or model), Unreadable(strict) as unreadable:
        detector = options.open_model(model, weights, device, endpoint, key_variable, engine)
        before = _refuse_several(detector)
        if threshold is not None:
            detector.set_threshold(options.as_printed(threshold, detector), time)
            detector.save(output or model)
            say(f"{output or model}: threshold set by hand")
            known = detector.calibration.images
            above = f"{(known > threshold).sum()} of {count(len(known), 'known good image')}"
            tell(*describe_decisions(detector), ("rejects", above if len(known) else ""))
            tell(_earlier(before, detector.threshold))
        elif files:
            _by_images(detector, files, rate, time, unreadable)
            if not by_cost:  # which may yet be refused, and then nothing is written
                detector.save(output or model)
                told = count(len(detector.calibration), "good image")
                say(f"{output or model}: calibrated on {told}")
            tell(_earlier(before, detector.threshold))
        if by_cost:
            _by_cost(detector, defective, by_cost, time, unreadable)
            detector.save(output or model)
            say(f"{output or model}: threshold set by costs")
            tell(_earlier(before, detector.threshold))
        elif defective:
            _tell_misses(detector, defective, unreadable)
        if noted.noted < noted.inspected:
            say(
                f"WARNING: {noted.noted} of {noted.inspected} inspected images have an opinion; "
                "the threshold keeps its rate only if they were not picked by their scores. "
                "`offnominal undo` takes it back, unless it replaced an earlier calibration"
            )
        tell(("", str(passed)))


def _costs(
    miss: float | None,
    reject: float,
    rate: float | None,
    defects: list[str] | None,
    threshold: float | None,
) -> tuple[float, float, float] | None:
    """Costs and rate, if the threshold is to follow from them."""
    if miss is None:
        if rate is not None or reject != 1:
            raise OptionError("--defect-rate, --cost-reject: give --cost-miss as well")
        return None
    if rate is None:
        raise OptionError(
            "--cost-miss: how many parts on the line are defective decides as well; give "
            "--defect-rate, as 0.01"
        )
    if not defects:
        raise OptionError("--cost-miss: name folders of defective images with --defects")
    if threshold is not None:
        raise OptionError(f"--threshold {threshold:g}: --cost-miss sets it; give one of the two")
    return miss, reject, rate


def _by_cost(
    detector: Any,
    defective: list[Path],
    costs: tuple[float, float, float],
    noted: "datetime | None",
    unreadable: Unreadable,
) -> None:
    """Set the threshold by costs, from scores of defects by a layer that does not know them."""
    from offnominal.costs import threshold_by_cost

    known, scores, passed_over = getattr(detector, "known_defects", None), [], 0
    own = known.left_out(detector.aggregate, float(detector.smoothing)) if known else {}
    itself = {one.digest for one in known.defects} if known and known.layer else set()
    itself |= {one["digest"] for one in getattr(detector, "defects_", ())}  # of a training
    good_ones = {one.digest for one in detector.references if one.active}
    with progress_bar(len(defective)) as advance:
        for one in detector.stream(defective, unreadable, advance):
            digest = one.digest
            if digest in good_ones:
                raise OptionError(
                    f"--defects {printable(str(one.source))}: the model has learned from it as a "
                    "good part; name defective images, or forget it first"
                )
            if digest in itself and digest not in own:
                passed_over += 1  # the layer learned from it
                continue
            scores.append(own[digest] if digest in itself else one.score)
    if passed_over:
        say(f"{passed_over} that the model has learned from are left out")
        if not scores:
            raise OptionError(
                "--defects: the model has learned from all of them, so that they say nothing of "
                "others; give some that it has not seen"
            )
    good = detector.calibration.images
    told = threshold_by_cost(good, scores, *costs)
    detector.set_threshold(told.value, noted)
    miss, reject, rate = costs
    if told.missed == told.defects:
        say(
            f"WARNING: all of {count(told.defects, 'defective image')} would pass: at these costs, "
            "and by these scores, to reject what is like them costs more than it saves"
        )
    tell(
        ("costs of", f"{miss:g} a miss, {reject:g} a false reject, {rate:.3g} defective"),
        ("threshold", digits(told.value)),
        ("passes", f"{told.missed} of {count(told.defects, 'defective image')}"),
        ("rejects", f"{told.rejected} of {count(told.good, 'good image')}"),
        ("costs", f"about {told.cost:.3g} a part; no rate of rejected good parts is promised"),
    )


def _refuse_several(detector: Any) -> "Threshold | None":
    """The threshold that is to be replaced, of a model that has one only."""
    from offnominal.detectors.categories import refuse_several

    refuse_several(detector.references)
    before: Threshold | None = detector.threshold
    return before


def _by_images(
    detector: Any,
    files: list[Path],
    rate: Any,
    noted: "datetime | None",
    unreadable: Unreadable,
) -> None:
    before = detector.threshold
    with progress_bar(len(files)) as advance:
        skipped = detector.calibrate(files, rate, unreadable, advance, when=noted)
    if detector.threshold is None and before is not None:
        told = describe_threshold(detector)
        raise OptionError(f"nothing was changed: the threshold would be {told}")
    known = f"{skipped} that it knows already: references, or copies" if skipped else ""
    tell(("left out", known), *describe_decisions(detector))


def _earlier(before: "Threshold | None", after: "Threshold | None") -> tuple[str, str]:
    """What the threshold was, and whether it promised more."""
    if before is None or after is None:
        return "", ""
    told = before.kind not in ("guess", "manual") and after.kind != "manual"
    looser = told and after.tightest > before.tightest
    return "before", f"{before}{'; fewer good images than before promise less' if looser else ''}"


def _tell_misses(detector: Any, defective: list[Path], unreadable: Unreadable) -> None:
    with progress_bar(len(defective)) as advance:
        found = detector.stream(defective, unreadable, advance)
        decisions = [prediction.is_anomalous for prediction in found]
    missed = sum(decision is not True for decision in decisions)
    share = f"{100 * missed / len(decisions):.1f} %" if decisions else "none readable"
    tell(("miss rate", f"{share} ({missed} of {len(decisions)} defective images pass)"))
