"""The plan: each item in one chunk, and a chunk done when its part is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed: the extra [ray]")

import pyarrow as pa
import pyarrow.parquet as pq

from bilateral_export.errors import UserError
from bilateral_serving.scoring import plan as planning
from bilateral_serving.scoring.items import Item
from bilateral_serving.scoring.plan import Plan, extend_plan, read_plan, writing


def items(*numbers: int) -> list[Item]:
    return [Item(f"/photos/{number}.png") for number in numbers]


def planned(plan: Plan) -> list[Item]:
    return [item for chunk in plan.chunks for item in chunk.read(plan.folder)]


def extended(folder: Path, wanted: list[Item], limit: int | None = None) -> Plan:
    return extend_plan(read_plan(folder), wanted, limit)


def write(plan: Plan, number: int, rows: int) -> Path:
    part = plan.folder / plan.chunks[number].part
    pq.write_table(pa.table({"path": ["x"] * rows}), part)
    return part


def test_an_item_is_planned_once_however_often_it_comes(tmp_path: Path) -> None:
    with writing(tmp_path):
        first = extended(tmp_path, items(*range(100), 5, 7))
        again = extended(tmp_path, items(*range(100)))
        grown = extended(tmp_path, [*items(200), *items(*range(100))])
    assert planned(first) == planned(again) == items(*range(100))
    assert planned(grown) == items(*range(100), 200)
    assert grown.chunks[: len(first.chunks)] == first.chunks  # their parts stay what they are
    assert len({chunk.part for chunk in grown.chunks}) == len(grown.chunks)


def test_a_limit_that_is_raised_adds_the_rest(tmp_path: Path) -> None:
    with writing(tmp_path):
        extended(tmp_path, items(*range(50)), limit=10)
        assert planned(extended(tmp_path, items(*range(50)), limit=20)) == items(*range(20))


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    odd = [Item("/photos/caf\udce9.png"), Item("/photos/☕.png", "/t.parquet", 3)]
    with writing(tmp_path):
        assert planned(extended(tmp_path, odd)) == odd


def test_many_items_go_into_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LARGEST_PART", 4)
    monkeypatch.setattr(planning, "SMALLEST_PART", 1)
    monkeypatch.setattr(planning, "_GROUPS", 3)
    monkeypatch.setattr(planning, "_LEAST_PARTS", 5)
    with writing(tmp_path):
        found = extended(tmp_path, items(*range(30)))
    assert planned(found) == items(*range(30))
    assert max(found.sizes) == 4
    assert len(list(tmp_path.glob("_plan/*.parquet"))) == 3


def test_a_part_counts_when_it_is_whole(tmp_path: Path) -> None:
    with writing(tmp_path):
        plan = extended(tmp_path, items(*range(192)))
    assert plan.sizes == (64, 64, 64)
    assert len(plan.pending()) == 3
    write(plan, 0, 64)
    write(plan, 1, 63)
    torn = write(plan, 2, 64)
    torn.write_bytes(torn.read_bytes()[:-10])  # as a disk may after a power cut
    assert [chunk.group for chunk, _ in plan.pending()] == [1, 2]


def test_one_run_writes_at_a_time_and_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".partial-1-part-0000-000000.parquet").touch()
    with writing(tmp_path):
        assert not list(tmp_path.glob(".partial*"))
        with pytest.raises(UserError, match="another run is writing"), writing(tmp_path):
            pass
    with writing(tmp_path):
        pass
