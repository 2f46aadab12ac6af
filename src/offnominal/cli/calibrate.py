"""``offnominal calibrate``: thresholds from more good images, and the miss rate on defects."""

from typing import Annotated

from offnominal.cli import options
from offnominal.cli.info import describe_decisions
from offnominal.cli.terminal import Unreadable, count, progress_bar, say, tell
from offnominal.errors import OptionError


def calibrate(
    model: options.Model,
    good: Annotated[list[str], "GOOD_DIR..."],
    defects: list[str] | None = None,
    output: options.Output = None,
    false_reject: str | None = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    endpoint: options.Endpoint = None,
    key_variable: options.KeyVariable = None,
    strict: options.Strict = False,
) -> None:
    """Refine a model's thresholds with more good images.

    Parameters
    ----------
    good : list of str
        Good images that it has not learned from.
    defects : list of str or None
        Folder or quoted glob of defective parts, to report the miss rate; repeatable.
    false_reject : rate or "auto"
        Rate of good parts that may be rejected; else as it was fitted.
    """
    from offnominal.detectors.categories import refuse_several
    from offnominal.paths import PassedOver, find_images

    options.check_model(output or model)
    rate = None if false_reject is None else options.read_rate(false_reject)
    passed = PassedOver()
    files = find_images(good, passed)
    defective = find_images(defects, passed) if defects else []
    shared = {file.absolute().parent for file in files} & {f.absolute().parent for f in defective}
    if shared:
        raise OptionError(
            f"--defects: good and defective images both come from {shared.pop()}; name folders, or "
            "quote the pattern so that the shell does not take it apart"
        )
    with options.changing(output or model), Unreadable(strict) as unreadable:
        detector = options.open_model(model, weights, device, endpoint, key_variable)
        refuse_several(detector.references)
        with progress_bar(len(files)) as advance:
            before = detector.threshold
            skipped = detector.calibrate(files, rate, unreadable, advance)
        number = count(len(detector.calibration), "good image")
        if detector.threshold is None and before is not None:
            told = describe_decisions(detector)[0][1]
            raise OptionError(f"nothing was changed: the threshold would be {told}")
        detector.save(output or model)
        say(f"{output or model}: calibrated on {number}")
        known = f"{skipped} that it knows already: references, or copies" if skipped else ""
        tell(("left out", known), *describe_decisions(detector))
        if before is not None and detector.threshold is not None:
            looser = detector.threshold.tightest > before.tightest and before.kind != "guess"
            why = "; fewer good images than before promise less" if looser else ""
            tell(("before", f"{before}{why}"))
        if defective:
            with progress_bar(len(defective)) as advance:
                found = detector.stream(defective, unreadable, advance)
                decisions = [prediction.is_anomalous for prediction in found]
            missed = sum(decision is not True for decision in decisions)
            share = f"{100 * missed / len(decisions):.1f} %" if decisions else "none readable"
            tell(("miss rate", f"{share} ({missed} of {len(decisions)} defective images pass)"))
        tell(("", str(passed)))
