"""Memory that grows is seen, and the gateway's figures are summed."""

from __future__ import annotations

import json

from benchmarks import gateway_memory, load_client, load_tasks


def samples(*rss: float) -> list[dict[str, float]]:
    return [{"handled": 100.0 * i, "rss_mib": mib, "s": float(i)} for i, mib in enumerate(rss)]


def test_growth_counts_from_where_memory_has_settled() -> None:
    most, line = gateway_memory.growth(samples(10.0, *[50.0] * 10))
    assert (most, round(line, 6)) == (0.0, 0.0)
    most, line = gateway_memory.growth(samples(*(10.0 + i for i in range(11))))
    assert most == 9.0
    assert abs(line - 10.0) < 1e-9
    most, _ = gateway_memory.growth(samples(10.0, 20.0, 35.0, *[20.0] * 8))
    assert most == 15.0  # a peak counts, though it went away


def test_figures_are_summed_over_tasks() -> None:
    told = gateway_memory.summed(
        "# HELP x y\n"
        'tracer_requests_total{decision="handled",reason="handled",task="a"} 3.0\n'
        'tracer_requests_total{decision="audit",reason="audit",task="a"} 1.0\n'
        'tracer_requests_total{decision="handled",reason="handled",task="b"} 2.0\n'
        'tracer_traces_written{task="a"} 1.0\n'
    )
    assert (told["handled"], told["tracer_requests_total"]) == (5.0, 6.0)
    assert (told["tracer_traces_written"], told["tracer_traces_dropped"]) == (1.0, 0.0)


def test_a_marked_body_is_spelt_in_many_ways() -> None:
    text = " ".join("abcdefghijklmn")
    body = gateway_memory.spelt(load_tasks.body("desk", "some prompt", gateway_memory.marked(text)))
    read = [json.loads(load_client.varied(body, number)) for number in (0, 1, 1023)]
    texts = [each["messages"][1]["content"] for each in read]
    assert texts[0] == text
    assert len({*texts}) == 3
    assert all(each["messages"][0]["content"] == "some prompt" for each in read)
