import numpy as np
import pytest
from scipy.special import stdtrit

from offnominal.calibration import choose_threshold, guess, p_value, student_quantile
from offnominal.checks import FalseReject
from offnominal.errors import OptionError


def test_conformal_threshold_is_the_right_order_statistic() -> None:
    scores = np.arange(1, 100)  # 99 images promise 1 % with their largest score
    found = choose_threshold(scores, 0.01)
    assert found is not None
    assert (found.value, found.kind) == (99, "conformal")
    found = choose_threshold(scores, 0.05)
    assert found is not None
    assert found.value == 95


def test_the_promise_is_kept() -> None:
    rng = np.random.default_rng(0)
    for count, rate in [(19, 0.05), (99, 0.05), (40, 0.1)]:
        rejected = []
        for _ in range(4000):
            scores = rng.lognormal(size=count + 1)
            found = choose_threshold(scores[:-1], rate)
            assert found is not None
            assert found.kind == "conformal"
            rejected.append(scores[-1] > found.value)
        # Three standard errors of a frequency over 4,000 draws.
        assert np.mean(rejected) <= rate + 3 * np.sqrt(rate / 4000)
        assert np.mean(rejected) >= rate / 2 - 0.01, "a threshold that never rejects is no use"


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 15, 16, 50, 99, 1000, 20_000])
def test_quantiles_of_students_t_are_those_of_scipy(freedom: int) -> None:
    for probability in (1e-4, 0.2, 0.6, 0.75, 0.9, 0.95, 0.99, 0.999, 1 - 1e-6, 1 - 1e-9):
        wanted = stdtrit(freedom, probability)
        assert student_quantile(freedom, probability) == pytest.approx(wanted, rel=1e-9)
    assert student_quantile(freedom, 0.5) == 0


def test_a_rate_that_cannot_be_promised_is_an_estimate_and_says_so() -> None:
    scores = np.random.default_rng(0).lognormal(size=16)
    found = choose_threshold(scores, 0.01)
    assert found is not None
    assert found.kind == "estimate"
    assert found.value > scores.max()
    assert found.tightest == pytest.approx(1 / 17)
    text = str(found)
    assert "ESTIMATE" in text
    assert "5.88 %" in text
    assert "--false-reject auto" in text
    assert "takes 99" in text


@pytest.mark.parametrize(
    ("count", "rate", "told"),
    [
        (1, 0.5, "up to 50 %"),
        (2, 1 / 3, "up to 33.3 %"),
        (4, 0.2, "conformal, 4 good images; 19 good parts promise 5 %, 99 promise 1 %)"),
        (19, 0.05, "conformal, 19 good images; 99 good parts promise 1 %)"),
        (99, 0.01, "conformal, 99 good images)"),
        (250, 0.01, "up to 1 %"),
    ],
)
def test_auto_asks_for_what_can_be_promised(count: int, rate: float, told: str) -> None:
    scores = np.random.default_rng(0).lognormal(size=count)
    found = choose_threshold(scores, "auto")
    assert found is not None
    assert (found.kind, found.count) == ("conformal", count)
    assert found.false_reject == pytest.approx(rate)
    assert found.value == (scores.max() if count < 199 else np.sort(scores)[-2])
    assert told in str(found)


def test_a_guess_says_that_nothing_is_known() -> None:
    found = guess([1.0, 3.0, 2.0], "auto")
    assert found is not None
    assert (found.kind, found.count) == ("guess", 1)
    assert found.value == pytest.approx(3.6)
    assert "GUESS" in str(found)
    assert "not known" in str(found)
    assert "2 good images promise 33.3 %" in str(found)
    assert guess([0.0, 0.0], "auto") is None


@pytest.mark.slow
def test_the_estimate_is_near_the_rate_for_lognormal_scores() -> None:
    rng = np.random.default_rng(1)
    rejected = []
    for _ in range(4000):
        scores = rng.lognormal(sigma=0.3, size=17)
        found = choose_threshold(scores[:-1], 0.01)
        assert found is not None
        rejected.append(scores[-1] > found.value)
    assert 0.004 < np.mean(rejected) < 0.02


def test_too_few_images_give_no_threshold() -> None:
    assert choose_threshold([], 0.01) is None
    assert choose_threshold([1.0, 2.0], 0.01) is None
    assert choose_threshold([1.0, 2.0], 0.4) is not None  # two images can promise a third


def test_identical_scores() -> None:
    found = choose_threshold([0.3] * 5, 0.01)
    assert found is not None
    assert found.value == pytest.approx(0.3)


def test_p_value_counts_good_images_at_least_as_high() -> None:
    scores = [1.0, 2.0, 3.0, 4.0]
    assert p_value(5.0, scores) == pytest.approx(1 / 5)
    assert p_value(3.0, scores) == pytest.approx(3 / 5)
    assert p_value(0.0, scores) == 1
    assert p_value(0.0, []) is None


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, float("nan"), "5 %", None])
def test_impossible_rates_are_refused(rate: FalseReject) -> None:
    with pytest.raises(OptionError, match="--false-reject"):
        choose_threshold([1.0, 2.0], rate)


@pytest.mark.parametrize("scores", [[0] * 200, [0, 0, 0, 0], [1e-9, 1, 1e9, 1e-9]])
def test_scores_that_tell_nothing_apart_set_no_threshold(scores: list[float]) -> None:
    assert choose_threshold(scores, 0.01) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(OptionError, match="not finite"):
        choose_threshold([1, 2, value], 0.3)
