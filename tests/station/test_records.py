"""Records: finding any part again, labels, counts, shifts; on both databases."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from offnominal.errors import OptionError
from offnominal.station.settings import Settings
from offnominal.station.shifts import shift_at, shift_of
from offnominal.station.station import Station
from offnominal.station.store import search as searching
from offnominal.station.store.counts import Counts, counts, reasons
from offnominal.station.store.labelling import label, undo
from offnominal.station.store.search import Count, Place, Search, count, find, walk
from offnominal.station.store.tables import Audit, Inspection, Label
from tests.station.conftest import BOTH
from tests.station.rows import NOW, add, add_product

pytestmark = BOTH


@pytest.fixture
def parts(station: Station) -> list[int]:
    """Twelve parts of one product and three of another, a minute apart, the last one now."""
    product, version = add_product(station, "Tile")
    scores = [0.5, 0.6, 1.5, None, 0.7, 0.8, 2.5, 0.9, 0.55, 1.2, 0.65, 0.75]
    found = add(station, product, version, scores, serial="A-1")
    other, its = add_product(station, "Ring")
    found += add(station, other, its, [0.1, 0.2, 3.0], last=NOW - timedelta(hours=1), serial="B_%")
    with station.database.writing() as session:
        label(session, [found[2]], "bad", "ada", "dent")
        label(session, [found[9]], "good", "ada")
    return found


def looked_up(station: Station, limit: int = 60, **given: object) -> list[int]:
    with station.database.reading() as session:
        found = find(session, Search.model_validate(given), ZoneInfo("UTC"), limit)
        number = count(session, Search.model_validate(given), ZoneInfo("UTC"))
        if limit == 60:
            assert number == Count(len(found.rows), True)
        return [row.id for row in found.rows]


@pytest.mark.parametrize(
    ("given", "places"),
    [
        ({"verdict": "reject"}, [9, 6, 2, 14]),
        ({"verdict": "not-inspected"}, [3]),
        ({"label": "bad"}, [2]),
        ({"label": "any"}, [9, 2]),
        ({"label": "none", "verdict": "reject"}, [6, 14]),
        ({"kind": "dent"}, [2]),
        ({"serial": "B"}, [14, 13, 12]),
        ({"serial": "B_%"}, [14, 13, 12]),
        ({"serial": "_"}, []),
        ({"source": "nowhere"}, []),
        ({"least": "1.2", "most": "2.5"}, [9, 6, 2]),
        ({"since": "2026-03-10T11:58:00Z"}, [11, 10, 9]),
        ({"until": "2026-03-09"}, []),
        ({"since": "2026-03-10", "until": "2026-03-10", "serial": "B"}, [14, 13, 12]),
        ({"since": "", "verdict": "", "product": "", "serial": "B"}, [14, 13, 12]),
    ],
)
@pytest.mark.slow
def test_parts_are_found(
    station: Station, parts: list[int], given: dict[str, str], places: list[int]
) -> None:
    assert looked_up(station, **given) == [parts[one] for one in places]


def test_a_product_s_scores(station: Station, parts: list[int]) -> None:
    with station.database.reading() as session:
        product = session.get_one(Inspection, parts[0]).product_id
    assert looked_up(station, product=product, least=1.3) == [parts[6], parts[2]]


def test_pages_are_walked_both_ways(station: Station, parts: list[int]) -> None:
    order = [*parts[11::-1], *parts[14:11:-1]]
    seen: list[int] = []
    at: Place | None = None
    with station.database.reading() as session:
        while True:
            found = find(session, Search(after=str(at) if at else None), None, 4)
            seen += [row.id for row in found.rows]
            if found.older is None:
                break
            at = found.older
        assert seen == order
        back = find(session, Search(before=str(at)), None, 4)
        assert [row.id for row in back.rows] == order[7:11]
        assert back.newer is not None
        first = find(session, Search(before=str(back.newer)), None, 7)
        assert [row.id for row in first.rows] == order[:7]
        assert first.newer is None


def test_parts_of_one_moment_are_told_apart(station: Station) -> None:
    product, version = add_product(station)
    ids = add(station, product, version, [0.5] * 5, every=timedelta(0))
    with station.database.reading() as session:
        first = find(session, Search(), None, 2)
        second = find(session, Search(after=str(first.older)), None, 3)
    assert [row.id for row in [*first.rows, *second.rows]] == ids[::-1]


@pytest.mark.slow
def test_a_search_looks_so_far_and_says_so(
    station: Station, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_STEPS", (2, 3))
    monkeypatch.setattr(searching, "_COUNT_LOOK", 5)
    with station.database.reading() as session:
        found = find(session, Search(source="http", least=2.0), None, 3)
        assert [row.id for row in found.rows] == []
        assert found.looked is not None
        assert found.looked.id == parts[7]
        assert count(session, Search(least=2.0), None) == Count(0, False)
        more = find(session, Search(least=2.0, after=str(found.looked)), None, 3)
        assert [row.id for row in more.rows] == [parts[6]]
    everything = walk(station.database, Search(least=1.2), None, 2)
    assert [row.id for part in everything for row in part] == [parts[one] for one in (9, 6, 2, 14)]


@pytest.mark.parametrize(
    "given",
    [{"after": "x"}, {"verdict": "fine"}, {"serial": "a\0"}, {"product": -1}, {"least": "nan"}],
)
def test_nonsense_is_refused(station: Station, given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Search.model_validate(given)


def test_labels_are_kept_each_time(station: Station, parts: list[int]) -> None:
    with station.database.writing() as session:
        assert label(session, parts[:3], "bad", "bob", "dent") == parts[:2]
        assert undo(session, parts[0], "bob")
        assert not undo(session, parts[5], "bob")
    with station.database.reading() as session:
        row = session.get_one(Inspection, parts[0])
        assert (row.label, row.kind, row.labelled_by) == (None, None, None)
        said = session.scalars(
            sa.select(Label).where(Label.inspection_id == parts[0]).order_by(Label.id)
        )
        assert [(one.label, one.by) for one in said] == [("bad", "bob"), (None, "bob")]
        noted = session.scalars(sa.select(Audit.action).order_by(Audit.id.desc())).all()
        assert noted[:2] == ["inspection.label.undo", "inspection.label"]
    with station.database.writing() as session:
        undo(session, parts[0], "bob")
        assert session.get_one(Inspection, parts[0]).label == "bad"
        with pytest.raises(OptionError, match="999999"):
            label(session, [999_999], "good", "bob")


def test_counts_of_a_shift(station: Station, parts: list[int]) -> None:
    with station.database.writing() as session:
        label(session, [parts[0]], "bad", "ada")
    with station.database.reading() as session:
        product = session.get_one(Inspection, parts[0]).product_id
        found = counts(session, NOW - timedelta(minutes=30), NOW + timedelta(seconds=1))
        assert found == {product: Counts(8, 3, 1, false_alarms=1, misses=1, labelled=3)}
        assert found[product].all == 12
        assert counts(session, NOW, NOW) == {}
        assert reasons(session, NOW - timedelta(days=1), NOW) == [("timeout", 1)]


def test_shifts_follow_one_another(settings: Settings) -> None:
    settings.timezone = "Europe/Berlin"
    night = shift_at(settings, datetime(2026, 3, 29, 0, 30, tzinfo=UTC))
    assert (night.day, night.number) == (date(2026, 3, 28), 3)
    # The night in which clocks go forward is an hour shorter.
    assert night.end - night.start == timedelta(hours=7)
    assert shift_at(settings, night.end) == shift_of(settings, date(2026, 3, 29), 1)
    with pytest.raises(LookupError):
        shift_of(settings, date(2026, 3, 29), 4)
