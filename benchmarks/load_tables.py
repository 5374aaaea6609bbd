"""The tables of `benchmarks.gateway_load`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import footer, table

CLIENTS = (1, 64)
ECHO, STANDIN, LITELLM = "echo", "stand-in", "LiteLLM"
HANDLED, SCHEMA, QUIET, PASSED = "handled", "handled, schema", "handled, no log", "passed on"
STREAM, DENSE = "stream", "handled, embeddings"
SHOWN = {
    ECHO: "Starlette alone, an echo",
    HANDLED: "Tracer, handled by text",
    SCHEMA: "Tracer, handled by text, the label in a JSON schema of all labels",
    QUIET: "Tracer, handled by text, without the log line of each request",
    STREAM: "Tracer, all test messages, 2% audited",
    DENSE: "Tracer, handled by embeddings",
    STANDIN: "the stand-in alone",
    PASSED: "Tracer, passed on to the stand-in",
    LITELLM: "LiteLLM's proxy, passed on to the stand-in",
}
BASE = {
    HANDLED: ECHO, SCHEMA: ECHO, QUIET: ECHO, DENSE: ECHO, STREAM: ECHO, PASSED: STANDIN, LITELLM: STANDIN
}  # fmt: skip
"""What an arm's latency is held against."""


def middle(cells: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float, float]:
    """Median, least and most of a figure over rounds."""
    values = [float(cell[key]) for cell in cells]
    return statistics.median(values), min(values), max(values)


def paired(
    cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], of: Callable[[Any, Any], float]
) -> tuple[float, float, float]:
    """Median, least and most over rounds of what is made of an arm's round and the other's same round."""
    values = [of(a, b) for a, b in zip(cells, others, strict=True)]
    return statistics.median(values), min(values), max(values)


def spread(found: tuple[float, float, float], form: str) -> str:
    """``median (least to most)``, or the one value there is."""
    mid, low, high = (format(value, form) for value in found)
    return mid if low == high else f"{mid} ({low} to {high})"


def render(result: dict[str, Any]) -> str:
    """Calls a second with many clients, latency with one, the slow teacher."""
    arms, most = result["arms"], str(max(CLIENTS))
    names = [name for name in SHOWN if name in arms]
    echo = arms[ECHO][most]
    crowd = table(
        (
            "64 clients",
            "calls/s",
            "times the echo's",
            "p50, ms",
            "p99, ms",
            "all served after, s",
            "server's core busy",
            "clients busy",
        ),
        (
            (
                SHOWN[name],
                spread(middle(cells := arms[name][most], "per_s"), ",.0f"),
                spread(paired(cells, echo, lambda a, b: float(a["per_s"] / b["per_s"])), ".2f"),
                spread(middle(cells, "p50_ms"), ".1f"),
                spread(middle(cells, "p99_ms"), ".1f"),
                f"{middle(cells, 'all_served_s')[0]:.2f}",
                f"{middle(cells, 'server_busy')[0]:.0%}",
                f"{middle(cells, 'client_busy')[0]:.0%}",
            )
            for name in names
        ),
    )
    alone = table(
        (
            "1 client",
            "calls/s",
            "p50, ms",
            "p99, ms",
            "beside",
            "p50 added, ms",
            "p99 added, ms",
            "overhead told, p50 and p99, ms",
        ),
        (
            (
                SHOWN[name],
                spread(middle(cells := arms[name]["1"], "per_s"), ",.0f"),
                spread(middle(cells, "p50_ms"), ".3f"),
                spread(middle(cells, "p99_ms"), ".3f"),
                *_added(name, arms),
                _told(cells),
            )
            for name in names
        ),
    )
    lexical = result["policies"][HANDLED]
    dense = result["policies"].get(DENSE)
    return f"""## The gateway under load

`tracer serve` with one process, {_rounds(result["rounds"])} of {result["seconds"]:g} s after {result["warm_s"]:g} s of warming up, in which all take turns in random
order; medians (least to most) over rounds, ratios and differences within a round. {_pinned(result)}
"Added" is against the echo, or the stand-in, with the same clients; "told" is the response header `x-tracer-overhead-ms`.
Measuring begins when all 64 clients that come at once have had an answer, told as "all served after".
A client keeps its connection and asks at once when it has its answer; every answer was read, had status 200 and, where the row
says handled, `x-tracer-decision: handled`; no connection was closed. Each request is another test message of Banking77 under a
prompt that names all labels ({result["bytes"]["desk"]:,} bytes; {result["bytes"]["typed"]:,} with the schema); an answer has {result["answer_bytes"]:,} bytes. Rows that say handled ask only what
the policy handles, with no audits: {lexical["n_handled"]:,} of {lexical["n"]:,} messages by text{_by_embeddings(dense)}.
The echo is Starlette on the gateway's own server (same loop, parser and settings): it reads the body, parses the JSON, and
writes the same answer as JSON. The stand-in answers every call with the same bytes.

{crowd}

{alone}

{_wrk(result)}{_litellm(result)}
{_slow(result)}
Ready after its start, on one core: {_started(result)}.

{", ".join(f"{k} {v}" for k, v in result["versions"].items())}. {footer(result)}
"""


def _rounds(n: int) -> str:
    return "one round" if n == 1 else f"{n} rounds"


def _pinned(result: Mapping[str, Any]) -> str:
    if not result["pinned"]:
        return "Server and clients share this machine's cores."
    return (
        "The\nserver measured has one core to itself, all other servers stopped; the clients, and the stand-in where a gateway "
        "asks it,\nhave the other one."
    )


def _by_embeddings(dense: Mapping[str, Any] | None) -> str:
    if dense is None:
        return ""
    return f", {dense['n_handled']:,} by embeddings (all-MiniLM-L6-v2 exported to ONNX, on the server's core)"


def _added(name: str, arms: Mapping[str, Any]) -> tuple[str, str, str]:
    """What an arm's latency is held against, and the differences of its p50 and p99."""
    base = BASE.get(name)
    if base is None:
        return "-", "-", "-"
    ours, theirs = arms[name]["1"], arms[base]["1"]
    p50 = paired(ours, theirs, lambda a, b: float(a["p50_ms"] - b["p50_ms"]))
    p99 = paired(ours, theirs, lambda a, b: float(a["p99_ms"] - b["p99_ms"]))
    return base, spread(p50, ".3f"), spread(p99, ".3f")


def _told(cells: Sequence[Mapping[str, Any]]) -> str:
    told = [cell["told_overhead"] for cell in cells if "told_overhead" in cell]
    return f"{middle(told, 'p50_ms')[0]:.3f}, {middle(told, 'p99_ms')[0]:.3f}" if told else "-"


def _wrk(result: Mapping[str, Any]) -> str:
    if "wrk" not in result:
        return ""
    most = str(max(CLIENTS))
    parts = [
        f"{SHOWN[name]} {rate:,.0f} calls/s (ours: {middle(result['arms'][name][most], 'per_s')[0]:,.0f})"
        for name, rate in result["wrk"].items()
    ]
    return f"The same requests by wrk, {most} connections, as a check of our own clients: {'; '.join(parts)}.\n\n"


def _litellm(result: Mapping[str, Any]) -> str:
    found = result["litellm"]
    if found is None:
        return "LiteLLM's proxy was not measured.\n"
    known = ", ".join(f"{k} {v}" for k, v in found.items() if k != "litellm")
    return f"LiteLLM {found['litellm']} ({known}): one worker, no database, no key, `LITELLM_MODE=PRODUCTION`, `LITELLM_LOG=ERROR`.\n"


def _slow(result: Mapping[str, Any]) -> str:
    slow = result["slow"]
    rows = []
    for name, title in (("alone", "the teacher alone"), ("tracer", "through Tracer")):
        cells = slow[name]
        total = sum(cell["n"] for cell in cells)
        handled = sum(cell["decisions"].get("handled", {"n": 0})["n"] for cell in cells)
        rows.append((
            title, *(spread(middle(cells, key), form) for key, form in
                     (("per_s", ",.0f"), ("p50_ms", ".1f"), ("p99_ms", ".1f"))),
            f"{handled / total:.0%}" if name == "tracer" else "-",
        ))  # fmt: skip
    shown = table(("64 clients", "calls/s", "p50, ms", "p99, ms", "handled"), rows)
    return f"""All test messages before a teacher whose latency is log-normal, median {slow["median_s"] * 1e3:.0f} ms (sigma {slow["spread"]}), {result["audit_rate"]:.0%} audited and
traces recorded:

{shown}
"""


def _started(result: Mapping[str, Any]) -> str:
    shown = {
        HANDLED: "the gateway with four tasks",
        DENSE: "with the encoder",
        ECHO: "the echo",
        LITELLM: "LiteLLM's proxy",
    }
    found = result["started"]
    return "; ".join(
        f"{title} {found[name]['start_s']:.1f} s ({found[name]['rss_mib']:.0f} MiB)"
        for name, title in shown.items()
        if name in found
    )
