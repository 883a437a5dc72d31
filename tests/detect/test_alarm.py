"""An open alarm: how much more has to be wrong for it to be told again."""

import pytest

from surefoot.detect.alarm import Alarm, OpenAlarm
from surefoot.detect.baselines import Outlier
from surefoot.detect.signals import Signals

SHOWN = Signals(clip_ratios={"top": 1.0})


@pytest.mark.parametrize(("first", "later", "is_news"), [(1.2, 2.0, False), (1.2, 2.3, True), (4.0, 5.8, False)])
def test_an_excess_that_had_settled_is_news_if_it_grows_by_half_and_by_a_bound(
    first: float, later: float, is_news: bool
) -> None:
    opened = OpenAlarm([Alarm(0, None, "top", "clip_ratio", "")], "top", window=5)
    opened.news(0, [Outlier("clip_ratio", "top", True, first, "")], SHOWN)
    for step in range(1, 20):
        assert opened.news(step, [], SHOWN) == []
    outlier = Outlier("clip_ratio", "top", True, later, "")
    assert opened.news(20, [outlier], SHOWN) == [outlier] * is_news
