"""The suite keeps what it has, notes what fails, and is completed into the same document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from bilateral_benchmarks.experiments.comparison import Comparison, Row
from bilateral_benchmarks.experiments.crossover import LengthRow, first_faster
from bilateral_benchmarks.experiments.document import BenchDocument, Item, Part, load_document
from bilateral_benchmarks.experiments.gemm_peak import Goal, Rate
from bilateral_benchmarks.experiments.scaling import Scaling
from bilateral_benchmarks.experiments.suite import Suite
from bilateral_benchmarks.experiments.summary import summary, write_summary
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.files import write_json
from bilateral_benchmarks.statistics.percentiles import Percentile
from bilateral_export.errors import UserError


def growth(name: str) -> Scaling:
    return Scaling(layer=name, series=(), context=Context.now())


class TwoParts(Suite):
    """A suite whose second part fails as long as `broken`."""

    broken = True

    def _all_parts(self) -> Mapping[str, Callable[[], Iterator[Item]]]:
        return {"first": self._first, "second": self._second}

    def _first(self) -> Iterator[Item]:
        yield growth("first")

    def _second(self) -> Iterator[Item]:
        yield growth("second, one")
        if self.broken:
            raise RuntimeError("the server died")
        yield growth("second, two")


def layers(document: BenchDocument) -> list[str]:
    return [item.layer for item in document.items if isinstance(item, Scaling)]


def test_a_part_that_fails_is_noted_and_made_up_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "suite.json"
    document = TwoParts(output).run()
    assert layers(document) == ["first", "second, one"]
    assert document.failures == ("second: RuntimeError: the server died",)
    monkeypatch.setattr(TwoParts, "broken", False)
    before = load_document(output).items[0]
    document = TwoParts(output, missing=True).run()
    assert layers(document) == ["first", "second, one", "second, two"]
    assert document.items[0] == before
    assert not document.failures
    assert load_document(output) == document


def test_one_part_is_run_anew_and_the_others_stay_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TwoParts, "broken", False)
    output = tmp_path / "suite.json"
    done: list[tuple[int, int]] = []
    TwoParts(output, only=["second"], on_part=lambda *at: done.append(at)).run()
    assert done == [(0, 1), (1, 1)]
    document = TwoParts(output, only=["first"]).run()
    assert [(part.name, part.items) for part in document.parts] == [("first", 1), ("second", 2)]
    with pytest.raises(UserError, match="no part 'third'"):
        TwoParts(output, only=["third"])


def test_what_another_suite_or_command_measured_is_not_lost(tmp_path: Path) -> None:
    output = tmp_path / "suite.json"
    for document in (
        BenchDocument(
            title="t",
            items=(growth("a"),),
            parts=(Part(name="elsewhere", items=1, seconds=1.0),),
        ),
        BenchDocument(title="t", items=(growth("a"),)),
    ):
        write_json(document, output)
        with pytest.raises(UserError, match="would be lost"):
            TwoParts(output, missing=True)
        assert load_document(output) == document


def comparison(share: float) -> Comparison:
    middle = Percentile(percent=50, value_ms=8.0, low_ms=None, high_ms=None, needed=1)
    row = Row(name="onnxruntime, lowered", median=middle, gemm_share=share, parity_passed=True)
    return Comparison(
        title="tiny, runtimes",
        baseline="torch eager",
        batch=1,
        rounds=1,
        gflop=1.0,
        gemm_gflops=200.0,
        gemm_rates=(Rate(library="onnxruntime", size=512, gflops=200.0),),
        goals=(Goal(row=row.name, share=0.6), Goal(row="not here", share=0.9)),
        rows=(row, Row(name="failing", median=middle, parity_passed=False)),
        context=Context.now(),
    )


@pytest.mark.parametrize(("share", "judged"), [(0.63, "met, by 3"), (0.55, "missed, by 5")])
def test_a_goal_is_judged_by_the_share(share: float, judged: str) -> None:
    notes = comparison(share).tables()[0].notes
    assert "the fastest of the libraries' products: onnxruntime 512, 200" in notes[0]
    assert notes[1:] == (f"Goal for onnxruntime, lowered: 60% of the GEMM peak; {judged} points.",)


def test_the_table_goes_between_the_marks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("above\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nbelow\n")
    document = BenchDocument(title="t", items=(comparison(0.63),))
    write_summary(document, page)
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("<!-- bench: end -->\nbelow\n")
    assert "old" not in text
    assert "| onnxruntime, lowered | 8.00 (63%) |" in text
    assert "| failing | 8.00, fails parity |" in text
    page.write_text("no marks")
    with pytest.raises(UserError, match="has no place"):
        write_summary(document, page)
    with pytest.raises(UserError, match="compares no runtimes"):
        summary(BenchDocument(title="t", items=()))


def test_the_crossover_is_where_the_interval_stays_above_one() -> None:
    lows = {65: 1.2, 197: 0.9, 577: 1.05, 1025: 1.3}
    rows = [
        LengthRow(
            tokens=tokens,
            range_kernel="dot",
            mask_ms=1,
            augmented_ms=1,
            ratio=low + 0.1,
            ratio_low=low,
            ratio_high=None,
        )
        for tokens, low in lows.items()
    ]
    assert first_faster(rows, "dot") == 577
    assert first_faster(rows[:2], "dot") is None
    assert first_faster(rows, "gaussian") is None
