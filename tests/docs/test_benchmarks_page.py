"""The page of benchmarks, the README's table and the figures say what the results files say."""

from __future__ import annotations

from benchmarks import figures, tables


def test_the_page_is_generated_from_the_results() -> None:
    results = tables.read()
    assert results, "no results file: the page would be empty"
    assert tables.PAGE.read_text(encoding="utf-8") == tables.page(results)


def test_the_readme_s_table_is_generated_from_the_results() -> None:
    readme = tables.README.read_text(encoding="utf-8")
    assert readme == tables.with_summary(readme, tables.read())


def test_the_figures_show_the_results() -> None:
    drawn = figures.COVERAGE.read_text(encoding="utf-8")
    assert figures.digest(figures.coverage_points(tables.read())) in drawn
    drawn = figures.FLYWHEEL.read_text(encoding="utf-8")
    assert figures.flywheel_digest(tables.read()) in drawn
