"""What the commands say of a detector's bank and of how it is searched."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector

__all__ = ["describe_bank", "describe_search", "search_facts"]


def describe_bank(detector: "Detector") -> str:
    """How many patches the bank holds, and how, if not in full."""
    storage = getattr(detector, "storage", "fp32")
    return f"{detector.bank_rows:,} patches{'' if storage == 'fp32' else f' as {storage}'}"


def search_facts(detector: "Detector") -> list[dict[str, Any]]:
    """Plain values about the search of a detector, or of an ensemble's members.

    Returns
    -------
    list of dict
        ``asked``, as ``--search`` took it; ``exact``, why the search is exact although an index was
        asked for, or None; ``indexes``, one for each bank; ``report``, what was measured at the
        fit. Empty where nothing but exact search was asked for.
    """
    from offnominal.detectors import indexing
    from offnominal.detectors.banked import Banked

    facts = []
    for part in detector.modules():
        if not isinstance(part, Banked) or part.search == "exact":
            continue
        report = part.index_report
        facts.append(
            {
                "asked": part.search,
                "exact": part.search_note_,
                "indexes": [
                    {
                        "kind": index.kind,
                        "setting": index.setting,
                        "rows": len(index),
                        "not_in_index": len(bank) - len(index),
                        "target": index.target,
                        "recall": index.recall,
                        "queries": index.queries,
                    }
                    for bank, index in zip(
                        part._patch_banks, indexing.indexes(part), strict=part.search_note_ is None
                    )
                ],
                "report": None if report is None else asdict(report),
            }
        )
    return facts


def describe_search(detector: "Detector", measured: bool = True) -> list[tuple[str, str]]:
    """Titles and words about an index, or about why there is none; nothing for exact search.

    Parameters
    ----------
    detector : Detector
    measured : bool
        Whether to tell what was measured at the fit as well.
    """
    lines: list[tuple[str, str]] = []
    for facts in search_facts(detector):
        if facts["exact"] is not None:
            lines.append(("search", f"exact: {facts['exact']}"))
            continue
        for index in facts["indexes"]:
            late = index["not_in_index"]
            rest = f"; {late:,} newer ones are searched exactly" if late else ""
            lines += [
                (
                    "search",
                    f"index {index['kind']} of {index['rows']:,} patches: {index['setting']}{rest}",
                ),
                (
                    "recall",
                    f"{index['recall']:.4f} on {index['queries']:,} held-back patches (asked for: "
                    f"{index['target']:g})",
                ),
            ]
        if measured and facts["report"] is not None:
            lines += _measured(facts["report"])
            if facts["report"]["rows"] != sum(index["rows"] for index in facts["indexes"]):
                lines.append(("", f"measured at the fit, with {facts['report']['rows']:,} patches"))
    return lines


def _measured(report: dict[str, Any]) -> list[tuple[str, str]]:
    with_index, without = report["auroc_approximate"], report["auroc_exact"]
    lines = [
        (
            "AUROC",
            f"{with_index:.4f} with the index, {without:.4f} by exact search "
            f"({with_index - without:+.4f}): {report['images']} references against the same with a "
            "blemish",
        ),
        ("", f"their scores changed by up to {100 * report['score_change']:.2g} %"),
    ]
    if report["speed"] is not None:
        lines.append(("", f"{report['speed']:.2g} times as fast as exact search"))
    return lines
