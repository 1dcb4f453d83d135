"""Results as files: round trips, pages, verdicts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bilateral_benchmarks.experiments.comparison import Comparison, Row
from bilateral_benchmarks.experiments.document import BenchDocument, load_document, schema
from bilateral_benchmarks.experiments.generator_limit import GeneratorLimit
from bilateral_benchmarks.experiments.in_process import bench_runner
from bilateral_benchmarks.experiments.scenarios import ScenarioResult
from bilateral_benchmarks.experiments.sweep import Point, Sweep
from bilateral_benchmarks.load.report import Report
from bilateral_benchmarks.report.compare_reports import compare_documents
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.files import write_json
from bilateral_benchmarks.report.plots import Bar, Line, bar_plot, line_plot
from bilateral_benchmarks.report.render import html, markdown
from bilateral_benchmarks.statistics.distribution import Distribution
from bilateral_export.errors import UserError
from bilateral_export.tensors import Array, TensorSpec

# What it measures is wrong while something else keeps the cores busy.
pytestmark = pytest.mark.timing


class Echo:
    """A runner that takes half a millisecond."""

    name = "echo <&>"
    inputs = (TensorSpec("x", "float32", ("batch", 2)),)
    outputs = inputs

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        time.sleep(0.0005)
        return dict(arrays)

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture(scope="module")
def report() -> Report:
    arrays = {"x": np.zeros((1, 2), dtype=np.float32)}
    return bench_runner(Echo(), arrays, duration_s=1.5, warmup_s=0.2)


def slowed(report: Report, factor: float, seed: int) -> Report:
    """The same measurement with other latencies: normal around `factor` ms."""
    seconds = 1e-3 * factor * np.random.default_rng(seed).normal(1.0, 0.1, size=2000)
    return report.model_copy(update={"response": Distribution.of(seconds)})


def test_a_document_survives_its_file_and_fits_its_schema(report: Report, tmp_path: Path) -> None:
    points = (Point(value=1, report=report), Point(value=2, report=None))
    document = BenchDocument(
        title="t",
        items=(
            report,
            Sweep(axis="batch", subject="echo", points=points),
            GeneratorLimit(subject="echo", rate=None, probes=(), report=None),
        ),
    )
    write_json(document, tmp_path / "d.json")
    assert load_document(tmp_path / "d.json") == document
    described = json.loads(schema())
    known = {"schema_version", "title", "items", "failures", "parts"}
    assert set(described["properties"]) == known


@pytest.mark.parametrize("program", ["/bin/bilateral", "/site-packages/bilateral_cli/__main__.py"])
def test_the_command_is_what_a_person_types(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [program, "bench", "limit"])
    assert Context.now().command == "bilateral bench limit"


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="not a report of this version"):
        load_document(tmp_path / "x.json")
    with pytest.raises(UserError, match="does not exist"):
        load_document(tmp_path / "y.json")


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.0, "indistinguishable"), (1.3, "slower"), (0.7, "faster")]
)
def test_the_verdict(report: Report, factor: float, expected: str) -> None:
    before = BenchDocument(title="a", items=(slowed(report, 1.0, 1),))
    after = BenchDocument(title="b", items=(slowed(report, factor, 2),))
    verdicts = compare_documents(before, after)
    assert {verdict.measure for verdict in verdicts} == {"p50, ms", "p99, ms"}
    assert {verdict.judgement for verdict in verdicts} == {expected}
    for verdict in verdicts:
        assert verdict.low is not None
        assert verdict.high is not None
        assert verdict.low <= verdict.ratio <= verdict.high


def document(report: Report) -> BenchDocument:
    return BenchDocument(title="t", items=(report,))


def doubts(before: Report, after: Report) -> tuple[str, ...]:
    (found,) = {verdict.doubts for verdict in compare_documents(document(before), document(after))}
    return found


def test_reports_without_anything_in_common_are_refused(report: Report) -> None:
    other = report.model_copy(update={"subject": "another"})
    longer = report.model_copy(update={"shapes": {"x": (1, 3)}})
    for another in (other, longer):
        with pytest.raises(UserError, match="no number of the same measurement in common"):
            compare_documents(document(report), document(another))


def test_reports_with_too_few_requests_are_refused(report: Report) -> None:
    few = report.model_copy(update={"response": Distribution.of(np.full(3, 1e-3))})
    with pytest.raises(UserError, match="long enough for a percentile"):
        compare_documents(document(few), document(few))


def test_what_speaks_against_a_verdict_is_said(report: Report) -> None:
    sound = report.model_copy(update={"valid": True, "stable": True, "problems": ()})
    machine = sound.context.machine
    elsewhere = sound.context.model_copy(
        update={"machine": machine.model_copy(update={"cpu": "another", "cores": 999})}
    )
    there = sound.model_copy(update={"context": elsewhere})
    late = sound.model_copy(update={"valid": False, "problems": ("late",)})
    assert doubts(sound, sound) == ()
    assert doubts(sound, there) == (
        f"different machines: processor {machine.cpu} | another; cores {machine.cores} | 999",
    )
    assert doubts(sound, late) == ("after: INVALID: late",)
    assert doubts(late, sound) == ("before: INVALID: late",)


def test_forms_that_fail_parity_are_doubted_and_other_batches_are_other_measurements(
    report: Report,
) -> None:
    median = report.response.percentiles[0]

    def forms(batch: int, passed: bool) -> BenchDocument:
        rows = (Row(name="int8", median=median, parity_passed=passed),)
        found = Comparison(
            title="forms",
            baseline="int8",
            batch=batch,
            rounds=1,
            gflop=1.0,
            gemm_gflops=1.0,
            rows=rows,
            context=report.context,
        )
        return BenchDocument(title="t", items=(found,))

    (verdict,) = compare_documents(forms(1, True), forms(1, False))
    assert verdict.doubts == ("after: fails parity",)
    with pytest.raises(UserError, match="in common"):
        compare_documents(forms(1, True), forms(2, True))


def test_results_of_several_runs_say_which_and_those_without_a_report_say_where(
    report: Report,
) -> None:
    machine = report.context.machine.model_copy(update={"cpu": "Another CPU"})
    elsewhere = report.context.model_copy(update={"machine": machine})
    none = ScenarioResult(
        scenario="Server", metric="requests/s", value=None, report=None, context=elsewhere
    )
    alone = markdown(BenchDocument(title="t", items=(none,)))
    assert "machine: Another CPU" in alone
    assert "run 1" not in alone
    both = markdown(BenchDocument(title="t", items=(report, none)))
    assert both.index("- run 1") < both.index(report.context.machine.cpu) < both.index("- run 2")
    assert both.index("From run 1.") < both.index("## Server") < both.index("From run 2.")


def test_curves_of_a_sweep_are_named_by_its_values(report: Report) -> None:
    points = (Point(value=1, report=report), Point(value=8, report=report))
    found = Sweep(axis="batch", subject="echo", points=points)
    page = html(BenchDocument(title="t", items=(found,)))
    assert ">batch 1</text>" in page
    assert ">batch 8</text>" in page


class _Page(HTMLParser):
    """Collects tags, text and what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v for k, v in attributes if k in ("src", "href") and v]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_pages_say_machine_command_and_numbers(report: Report) -> None:
    document = BenchDocument(title="Title & more", items=(report,), failures=("growth: no memory",))
    text, page = markdown(document), _Page()
    page.feed(html(document))
    for found in (text, page.text):
        assert report.context.machine.cpu in found
        assert "Title & more" in found
        assert "growth: no memory" in found
        assert "echo <&>" in found
    assert page.fetched == []  # self-contained
    assert "script" not in page.tags
    assert "svg" in page.tags
    assert f"| response | p50 | {report.p50_ms:#.3g}"[:24] in text


def test_plots_stay_inside_their_frame() -> None:
    x, y = [1.0, 10.0, 10_000.0], [0.001, 5.0, 3e5]
    for drawn in (
        line_plot([Line("a", x, y)], "x", "y", log_x=True, log_y=True),
        line_plot([Line("one point", [3.0], [3.0])], "x", "y"),
        bar_plot([Bar("a", [1.0, 2.0]), Bar("b", [0.0])], ["p", "q"], "ms"),
    ):
        width, height = map(float, re.findall(r"viewBox=\"0 0 (\d+) (\d+)\"", drawn)[0])
        for a, b in re.findall(r"([\d.-]+),([\d.-]+)", drawn):
            assert 0 <= float(a) <= width
            assert 0 <= float(b) <= height


def test_a_browser_shows_the_page(report: Report, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    path, shot = tmp_path / "page.html", tmp_path / "page.png"
    path.write_text(html(BenchDocument(title="In a browser", items=(report,))))
    common = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    dom = subprocess.run(
        [*common, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=90
    ).stdout
    assert "<h1>In a browser</h1>" in dom
    assert "<polyline" in dom
    subprocess.run([*common, f"--screenshot={shot}", path.as_uri()], check=True, timeout=90)
    from PIL import Image

    colours = Image.open(shot).convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 20  # text and curves, not a blank page
