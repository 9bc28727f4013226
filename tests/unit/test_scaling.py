"""Which points of a scaling sweep are cliffs, and which are bound by launches."""

from __future__ import annotations

import json
from pathlib import Path

from turbowan.benchmarks import scaling
from turbowan.benchmarks.request import parse_size, size_text


def scaling_point(label: str, **changed: object) -> scaling.Point:
    base = {"ms": 10.0, "first_ms": 11.0, "floor_ms": 5.0, "tokens": 1000, "working_gib": 1.0, "weights_gib": 1.0}
    return scaling.Point(**({"axis": "frames", "label": label} | base | changed))


def test_a_rise_between_neighbours_is_a_cliff() -> None:
    point = scaling_point
    points = [
        point("a"), point("b", ms=12.0), point("c", ms=20.0), point("d", ms=20.0, working_gib=2.0),
        point("e", ms=20.0, working_gib=2.0, first_ms=900.0), point("f", ms=40.0, floor_ms=10.0, working_gib=2.0),
    ]  # fmt: skip
    cliffs = {item.label: item.cliffs for item in scaling.marked(points)}
    assert {label for label, told in cliffs.items() if told} == {"c", "d", "e"}
    assert cliffs["c"] == ("over_floor ×1.67",)
    assert cliffs["d"] == ("mib_per_token ×2.00",)
    assert cliffs["e"] == ("first call 900 ms",)
    other_axis = point("g", axis="size", ms=90.0)
    assert not scaling.marked([*points, other_axis])[-1].cliffs


def test_a_fall_between_neighbours_is_no_cliff() -> None:
    points = [scaling_point("a", ms=30.0, working_gib=3.0), scaling_point("b", ms=10.0, working_gib=1.0)]
    assert not any(item.cliffs for item in scaling.marked(points))
    assert scaling.marked(points[::-1])[1].cliffs == ("over_floor ×3.00", "mib_per_token ×3.00")


def test_the_shortest_points_are_bound_by_launches_where_more_work_takes_them_no_longer() -> None:
    point = scaling_point
    points = [
        point("17", ms=80.0, floor_ms=17.0), point("33", ms=79.0, floor_ms=32.0), point("49", ms=85.0, floor_ms=49.0),
        point("81", ms=140.0, floor_ms=87.0), point("97", ms=141.0, floor_ms=120.0),
        point("a", axis="size", ms=140.0, floor_ms=87.0), point("b", axis="size", ms=280.0, floor_ms=180.0),
        point("c", axis="ratio", ms=140.0, floor_ms=76.0), point("d", axis="ratio", ms=142.0, floor_ms=87.0),
    ]  # fmt: skip
    found = scaling.marked(points)
    assert [item.label for item in found if item.launch_bound] == ["17", "33", "49"]
    assert not any(item.cliffs for item in found)
    assert "bound by launches" in scaling.line(found[0])
    assert "bound by launches" not in scaling.line(found[3])


def test_the_published_sweep_is_marked_by_the_rule() -> None:
    published = json.loads((Path(__file__).parents[2] / "docs/bench/scaling_h200.json").read_text(encoding="utf-8"))
    points = [scaling.Point(**(point | {"cliffs": tuple(point["cliffs"])})) for point in published["points"]]
    assert scaling.marked(points) == points


def test_sweeps_hold_sizes_the_models_take() -> None:
    for shapes in scaling.SWEEPS.values():
        for _, shape in shapes:
            assert parse_size(size_text(shape.size)) == shape.size
