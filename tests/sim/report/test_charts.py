import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.report.charts import Axis, Slope, line_view, percent, slope_view, spread
from sim.report.page import templates

DRAW = templates().get_template("charts.html").module
WITHIN = {"rate": 0.1, "low": 0.05, "high": 0.15}
BEYOND = {"rate": 0.9, "low": 0.8, "high": 1.0}


@given(st.floats(1e-3, 5.0))
def test_an_axis_holds_its_values_with_few_round_ticks(highest):
    axis = Axis.to(highest)
    assert highest <= axis.top * (1 + 1e-9) <= 2.6 * highest
    assert 2 <= len(axis.ticks) <= 6
    assert axis.ticks[0] == 0


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_labels_keep_their_order_and_do_not_overlap(positions):
    moved = spread(positions, 16, 0, 300)
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = [moved[index] for index in order]
    assert all(after - before >= 16 - 1e-6 for before, after in itertools.pairwise(placed))
    assert placed[0] >= -1e-6
    assert placed[-1] <= 300 + 1e-6


def test_a_rate_is_drawn_where_it_lies():
    svg = ElementTree.fromstring(DRAW.interval(WITHIN, Axis(0.2, (0.0, 0.1, 0.2)), "local"))
    assert svg.find("circle").get("cx") == "50.00%"
    whisker = next(line for line in svg.iter("line") if line.get("class") == "whisker")
    assert (whisker.get("x1"), whisker.get("x2")) == ("25.00%", "75.00%")
    assert "5.0" in svg.get("aria-label")


def test_a_rate_beyond_the_axis_is_an_arrow_not_a_dot():
    svg = DRAW.interval(BEYOND, Axis(0.2, (0.0, 0.2)), "zero-shot")
    assert "<circle" not in svg
    assert "<path" in svg


def test_every_curve_is_named_and_falls_when_its_rate_falls():
    chart = line_view({"global": [(0.0, 0.6), (1.0, 0.3)], "zero-shot": [(0.0, 0.6)]})
    svg = ElementTree.fromstring(DRAW.lines(chart, "T", "round"))
    names = [text.text for text in svg.iter("text") if text.get("class") == "name"]
    assert names == ["global", "zero-shot"]
    line = next(line for line in svg.iter("line") if line.get("class") == "curve")
    assert float(line.get("y2")) > float(line.get("y1"))


def test_a_single_round_and_rates_of_zero_make_a_chart():
    ElementTree.fromstring(DRAW.lines(line_view({"local": [(0.0, 0.0)]}), "T", "round"))


def test_a_device_that_gets_worse_is_marked_by_shape_and_words():
    slopes = {"a": Slope(0.2, 0.1, 0.3), "b & c": Slope(0.1, 0.2, None)}
    text = DRAW.slopes(slope_view(slopes, ("local", "global", "personalized")), "T")
    svg = ElementTree.fromstring(text)
    worse = [group for group in svg.iter("g") if group.get("class") == "device worse"]
    assert [group.find("title").text.partition(":")[0] for group in worse] == ["b & c"]
    assert "worse-mark" in ElementTree.tostring(worse[0], "unicode")
    assert "worse: b & c" in svg.get("aria-label")
    assert len(re.findall("arm-local", text)) == 1


@pytest.mark.parametrize(("rate", "text"), [(0.172, "17.2\u202f%"), (None, "–"), (0.0, "0.0\u202f%")])
def test_percentages_are_readable(rate, text):
    assert percent(rate) == text
