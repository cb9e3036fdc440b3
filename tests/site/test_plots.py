"""Plots: what is where, names that are told apart, and numbers of any size."""

from __future__ import annotations

import base64
import io
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lnlbench.site.plots import Series, lines, matrix, scatter

SVG = "{http://www.w3.org/2000/svg}"
NUMBER = r"-?\d+(?:\.\d+)?"

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
points = st.lists(st.tuples(finite, finite), max_size=6).map(tuple)


def parse(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawing)  # noqa: S314 - our own


def texts(picture: ElementTree.Element, kind: str) -> list[str]:
    return [each.text or "" for each in picture.iter(f"{SVG}text") if kind in each.get("class", "").split()]


def paths(picture: ElementTree.Element, kind: str) -> list[str]:
    return [each.get("d", "") for each in picture.iter(f"{SVG}path") if each.get("class") == kind]


def coordinates(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(rf"[ML]({NUMBER}) ({NUMBER})", path)]


def draw(*series: Series, **options: object) -> ElementTree.Element:
    return parse(lines("Title", "Text", "x", "y", series, id_prefix="p", **options))  # type: ignore[arg-type]


class TestLines:
    def test_has_a_name_and_a_description_for_those_who_do_not_see_it(self) -> None:
        picture = parse(lines("A <b>", "B & C", "x", "y", [Series("s", ((0, 1),))], id_prefix="p"))
        named = {each.get("id"): each.text for each in picture if each.tag in (f"{SVG}title", f"{SVG}desc")}
        assert named == {"p-t": "A <b>", "p-d": "B & C"}
        assert picture.get("role") == "img"
        assert picture.get("aria-labelledby") == "p-t p-d"

    def test_points_are_where_the_ticks_say(self) -> None:
        picture = draw(Series("s", ((0, 10), (5, 20), (10, 30))))
        (path,) = paths(picture, "line")
        (x0, y0), (x1, y1), (x2, y2) = coordinates(path)
        assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
        assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
        assert x0 < x1
        assert y0 > y1
        ticks = {
            each.text: float(each.get("y", "")) - 4
            for each in picture.iter(f"{SVG}text")
            if each.get("class") == "tick end"
        }
        assert ticks["10"] == pytest.approx(y0, abs=0.11)
        assert ticks["20"] == pytest.approx(y1, abs=0.11)
        assert ticks["30"] == pytest.approx(y2, abs=0.11)

    def test_error_bars_reach_as_far_as_the_spread(self) -> None:
        picture = draw(Series("s", ((0, 10), (1, 20)), (5.0, None)))
        (bar,) = paths(picture, "bar")
        top, bottom = re.fullmatch(rf"M{NUMBER} ({NUMBER})V({NUMBER})m.*", bar).groups()  # type: ignore[union-attr]
        (_, low), (_, high) = coordinates(paths(picture, "line")[0])
        assert float(bottom) - float(top) == pytest.approx(low - high, abs=0.21)

    def test_a_single_line_needs_no_legend(self) -> None:
        assert texts(draw(Series("only", ((0, 0), (1, 1)))), "key") == []

    def test_the_legend_names_all_lines_and_grows_with_them(self) -> None:
        many = [Series(f"a method with a long name {number}", ((0, number), (1, number))) for number in range(30)]
        picture, small = draw(*many), draw(*many[:2])
        assert texts(picture, "key") == [each.name for each in many]
        assert float(picture.get("height", "")) > float(small.get("height", "")) > 300
        right = max(float(each.get("x", "")) + 6.4 * len(each.text or "") for each in picture.iter(f"{SVG}text"))
        assert right < 540

    def test_lines_are_told_apart_beyond_eight(self) -> None:
        picture = draw(*(Series(str(number), ((0, number), (1, number))) for number in range(32)))
        groups = list(picture.iter(f"{SVG}g"))[:32]
        looks = {(group.get("class"), group[1].get("stroke-dasharray")) for group in groups}
        assert len(looks) == 32

    def test_marks_differ_in_shape_not_only_in_colour(self) -> None:
        picture = draw(*(Series(str(number), ((5, 5),)) for number in range(8)), marks=True)
        marks = [ElementTree.tostring(group[-1]) for group in list(picture.iter(f"{SVG}g"))[:8]]
        assert len({re.sub(rb'class="\w+"', b"", mark) for mark in marks}) == 8

    def test_a_line_of_one_point_is_seen(self) -> None:
        assert len(list(draw(Series("s", ((1, 1),))).iter(f"{SVG}circle"))) == 1

    def test_epochs_are_counted_in_whole_numbers_and_alike_in_all_pictures(self) -> None:
        short, long = Series("s", ((2, 1), (3, 2))), Series("s", ((1, 1), (2, 3), (3, 2)))
        assert texts(draw(short, count=3), "middle") == ["1", "2", "3"]
        assert coordinates(paths(draw(short, count=3), "line")[0])[0][0] == pytest.approx(
            coordinates(paths(draw(long, count=3), "line")[0])[1][0]
        )

    def test_without_points_there_is_a_frame(self) -> None:
        assert texts(draw(Series("s", ())), "name") == ["y", "x"]

    def test_large_and_negative_numbers_are_short(self) -> None:
        picture = draw(Series("s", ((0, -20_000_000), (1, 20_000_000))))
        assert {"−20M", "20M", "0"} <= set(texts(picture, "end"))

    @given(st.lists(st.builds(Series, st.text(max_size=9), points), max_size=12), st.booleans())
    def test_any_numbers_make_a_picture_inside_its_frame(self, series: list[Series], marks: bool) -> None:
        drawing = lines("t", "d", "x", "y", series, marks=marks, id_prefix="p")
        assert drawing == lines("t", "d", "x", "y", series, marks=marks, id_prefix="p")
        assert "nan" not in drawing
        assert "inf" not in drawing
        for path in re.findall(r'class="line" d="([^"h]*)"', drawing):
            for x, y in coordinates(path):
                assert 46 <= x <= 506
                assert 26 <= y <= 258

    def test_names_are_escaped(self) -> None:
        hostile = Series('<script>"&', ((0, 0), (1, 1)))
        drawing = lines("<i>", "<i>", "<i>", "<i>", [hostile, hostile], id_prefix='"<')
        assert "<script" not in drawing
        assert "<i>" not in drawing
        parse(drawing)


class TestScatter:
    def test_cost_is_logarithmic_when_asked_for(self) -> None:
        series = [Series(str(x), ((x, 50.0),)) for x in (1.0, 10.0, 100.0)]
        picture = parse(scatter("t", "d", "x", "y", series, log_x=True, id_prefix="p"))
        first, second, third = (float(each.get("cx", "")) for each in picture.iter(f"{SVG}circle"))
        assert second - first == pytest.approx(third - second, abs=0.11)
        assert {"1", "10", "100"} <= set(texts(picture, "middle"))

    def test_the_front_is_steps_through_its_points(self) -> None:
        series = [Series("cheap", ((1.0, 10.0),)), Series("good", ((2.0, 20.0),)), Series("bad", ((3.0, 5.0),))]
        front = ((1.0, 10.0), (2.0, 20.0))
        picture = parse(scatter("t", "d", "x", "y", series, front=front, id_prefix="p"))
        dots = {each[0].text: each for each in picture.iter(f"{SVG}circle")}
        assert [name for name, dot in dots.items() if "mark" in dot.get("class", "")] == ["cheap", "good"]
        at = {name: (dot.get("cx"), dot.get("cy")) for name, dot in dots.items()}
        (path,) = paths(picture, "front s1")
        assert path == f"M{at['cheap'][0]} {at['cheap'][1]}H{at['good'][0]}V{at['good'][1]}H506"

    def test_names_never_cover_each_other_and_none_is_lost(self) -> None:
        series = [Series(f"method-{number:02}", ((1 + number % 7, 50 + number % 5),)) for number in range(50)]
        picture = parse(scatter("t", "d", "x", "y", series, id_prefix="p"))
        assert len({each[0].text for each in picture.iter(f"{SVG}circle")}) == 50
        boxes = []
        for each in picture.iter(f"{SVG}text"):
            if "key" in each.get("class", ""):
                width, x, y = 6.4 * len(each.text or ""), float(each.get("x", "")), float(each.get("y", ""))
                left = {"end": x - width, "middle": x - width / 2}.get(each.get("class", "").split()[-1], x)
                boxes.append((left, y, left + width))
        assert boxes
        for number, (left, y, right) in enumerate(boxes):
            for other_left, other_y, other_right in boxes[:number]:
                assert abs(y - other_y) > 11 or right <= other_left or other_right <= left

    @given(points, st.booleans())
    def test_any_points_make_a_picture(self, places: tuple[tuple[float, float], ...], log_x: bool) -> None:
        drawing = scatter("t", "d", "x", "y", [Series("s", (each,)) for each in places], log_x=log_x, id_prefix="p")
        parse(drawing)
        assert "nan" not in drawing
        assert "inf" not in drawing


def png(drawing: str) -> list[list[int]]:
    """Decode a greyscale picture with opacity, and return the opacities."""
    data = base64.b64decode(re.search(r"base64,([^\"]+)", drawing)[1])  # type: ignore[index]
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.mode) == ("PNG", "LA")
        return [list(row) for row in np.asarray(picture)[:, :, 1].tolist()]


class TestMatrix:
    def test_shades_are_square_roots(self) -> None:
        shares = [[0.8, 0.2, 0.0], [0.01, 0.99, 0.0]]
        drawing = matrix("t", "d", "given", "true", shares, id_prefix="p")
        assert png(drawing) == [[round(255 * math.sqrt(share)) for share in row] for row in shares]
        assert texts(parse(drawing), "share") == ["80", "20", "", "1.0", "99", ""]

    def test_many_classes_are_a_small_picture(self) -> None:
        shares = [[0.4 if row == column else 0.6 / 99 for column in range(100)] for row in range(100)]
        drawing = matrix("t", "d", "given", "true", shares, id_prefix="p")
        assert len(drawing) < 5000
        assert len(png(drawing)) == 100
        assert texts(parse(drawing), "share") == []
        assert texts(parse(drawing), "middle") == [str(number) for number in range(0, 100, 9)]

    def test_classes_outside_the_task_are_more_rows(self) -> None:
        drawing = matrix("t", "d", "given", "true", [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], id_prefix="p")
        assert [len(row) for row in png(drawing)] == [2, 2, 2]

    def test_nothing_makes_an_empty_picture(self) -> None:
        drawing = matrix("t", "d", "given", "true", [], id_prefix="p")
        assert png(drawing) == [[0]]
        assert texts(parse(drawing), "tick") == []


def test_names_of_classes_are_escaped_and_shortened() -> None:
    picture = matrix("m", "d", "given", "true", [[0.9, 0.1], [0, 1]], names=("<b>bad</b>", "x" * 40), id_prefix="m")
    assert "<b>" not in picture
    assert picture.count("&lt;b&gt;bad&lt;/b&gt;") == 2
    assert picture.count(f">{'x' * 13}…<") == 2
