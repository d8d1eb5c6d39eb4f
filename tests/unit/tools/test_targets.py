"""The table of targets, and how rows stand to it."""

import pytest

from tools.rows import Row
from tools.targets import ALSO, TARGETS, Verdict, target_of, unmeasured, verdict_of


def test_the_table_has_every_number_once_and_its_aims_are_harder() -> None:
    """1 to 25; what is aimed at is never easier than what must be."""
    assert list(TARGETS) == list(range(1, 26))
    for target in (*TARGETS.values(), *ALSO.values()):
        assert target.aim >= target.must if target.is_lower_bound else target.aim <= target.must
        assert target.judge(target.aim) is Verdict.AIMED
        assert target.judge(target.must) in (Verdict.AIMED, Verdict.MET)


@pytest.mark.parametrize(
    ("number", "figure", "verdict"),
    [
        (2, 0.03, Verdict.AIMED),
        (2, 0.05, Verdict.MET),
        (2, 0.081, Verdict.MISSED),
        (9, 0.93, Verdict.AIMED),
        (9, 0.85, Verdict.MET),
        (9, 0.79, Verdict.MISSED),
        (15, 1, Verdict.MISSED),
    ],
)
def test_a_row_is_judged_by_its_number(number: int, figure: float, verdict: Verdict) -> None:
    """Upper bounds and lower ones."""
    assert verdict_of(Row("x", "", 7.0, ratio=figure, number=number)) == verdict.value


def test_what_is_judged_is_named_or_the_ratio_or_the_figure_itself() -> None:
    """In this order."""
    assert Row("x", "", 1.0, ratio=2.0, judged=3.0).figure() == 3.0
    assert Row("x", "", 1.0, ratio=2.0).figure() == 2.0
    assert Row("x", "", 1.0).figure() == 1.0


def test_a_row_of_a_second_figure_has_a_target_of_its_own() -> None:
    """Row 13 at depth 16 is not judged like depth 1."""
    row = Row("x", "", 1.0, ratio=0.5, number=13, also="13.16")
    assert target_of(row) is ALSO["13.16"]
    assert verdict_of(row) == Verdict.MET.value


def test_rows_without_a_number_say_themselves_what_is_wanted() -> None:
    """Met, missed, or nothing wanted."""
    assert verdict_of(Row("x", "", 1.0, met=True)) == Verdict.MET.value
    assert verdict_of(Row("x", "", 1.0, met=False)) == Verdict.MISSED.value
    assert verdict_of(Row("x", "", 1.0)) == ""


def test_a_row_without_a_figure_is_not_measured() -> None:
    """It neither meets nor misses its target, and its number counts as open."""
    row = Row("x", "", None, number=22, note="no request was stalled")
    assert verdict_of(row) == Verdict.UNKNOWN.value
    assert 22 in unmeasured([row])
    assert 22 not in unmeasured([row, Row("x", "", 1.2, number=22)])


def test_bounds_are_said_with_their_direction_and_unit() -> None:
    """As they are printed beside a figure."""
    assert TARGETS[9].bounds() == (">= 0.8", ">= 0.92")
    assert TARGETS[21].bounds() == ("<= 400 MiB", "<= 250 MiB")
    assert TARGETS[7].bounds() == ("<= 4%", "<= 2%")
