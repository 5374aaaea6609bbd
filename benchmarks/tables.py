"""docs/benchmarks.md from the results files: ``python -m benchmarks.tables`` writes it, a test compares."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from tracer.stats import binomial

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "benchmarks.md"


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, title in (("banking77", "Banking77"), ("clinc150", "CLINC150")):
        result = _read(f"core_{name}")
        if result:
            parts.append(_intents(title, result))
    nli = _read("core_nli")
    if nli:
        parts.append(_nli(nli))
    ablations = _read("ablations")
    if ablations:
        parts.append(_ablations(ablations))
    speed = _read("speed_fit")
    if speed:
        parts.append(_speed(speed))
    return "\n".join(parts)


def _read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def _row(row: dict[str, Any]) -> str:
    if row["verdict"] == "refused":
        return f"| {row['target']:g} | refused | - | - | - | - | {row['fit_s']} |"
    test, shadow = row["test"], row["shadow"]
    low, high = binomial.agreement_interval(test["n_agreed"], test["n_handled"])
    return (
        f"| {row['target']:g} | {row['family']}: {row['surrogate']} | {_percent(shadow['n_handled'], shadow['n'])} "
        f"| {_percent(test['n_handled'], test['n'])} | {_percent(test['n_agreed'], test['n_handled'])} "
        f"({low:.3f} to {high:.3f}) | {_percent(test['n_right'], test['n'])} | {row['fit_s']} |"
    )


_COLUMNS = """| target | policy | coverage, shadow | coverage, test | agreement, test (95% interval) | accuracy, end to end | fit, s |
|---|---|---|---|---|---|---|"""


def _sweep(rows: list[dict[str, Any]]) -> str:
    return "\n".join([_COLUMNS, *(_row(r) for r in rows)])


def _seeds(rows: list[dict[str, Any]], where: str) -> str:
    """Mean over seeds, refusals counting as coverage 0."""
    coverages, below, agreed, handled = [], 0, 0, 0
    for row in rows:
        if row["verdict"] == "refused":
            coverages.append(0.0)
            continue
        test = row[where]
        coverages.append(test["n_handled"] / test["n"])
        below += test["n_agreed"] < row["target"] * test["n_handled"]
        agreed, handled = agreed + test["n_agreed"], handled + test["n_handled"]
    return (
        f"mean coverage {mean(coverages):.3f} (from {min(coverages):.3f} to {max(coverages):.3f}), pooled agreement "
        f"{_percent(agreed, handled)}, below the target in {below} of {len(rows)} seeds"
    )


def _intents(title: str, result: dict[str, Any]) -> str:
    small = result["small"]
    n = small[0]["n_train"]
    return f"""## {title}

{result["sweep"][0]["n_train"]:,} traces in random order (seed 0), lexical and dense features, lean pool:

{_sweep(result["sweep"])}

Lexical features alone, no embeddings:

{_sweep(result["lexical"])}

{n:,} traces drawn at random, target 0.95, {len(small)} seeds:

- certified, on the test file: {_seeds(small, "test")};
- certified, on the rest of the training file: {_seeds(small, "rest")};
- estimated (no guarantee), on the test file: {_seeds(result["small_estimated"], "test")};
- estimated, on the rest of the training file: {_seeds(result["small_estimated"], "rest")}.

A certificate speaks of traffic like the traces it was made from, here the training file. Where the test file is harder
than the training file, as CLINC150's is, no certificate made on the latter holds on the former: that is what drift does,
and only labels from live traffic can tell.

Data digest `{result["digest"]}`. {_environment(result)}
"""


def _nli(result: dict[str, Any]) -> str:
    lines = "\n".join(f"- target {r['target']:g}: {r.get('statement', r['verdict'])}" for r in result["sweep"])
    return f"""## NLI, the negative control

{result["sweep"][0]["n_train"]:,} traces, premise and hypothesis in one text, rows grouped by premise.

{lines}

Data digest `{result["digest"]}`. {_environment(result)}
"""


def _ablations(result: dict[str, Any]) -> str:
    parts = ["## What each part brings\n"]
    parts.append(
        "Banking77's training file alone: fitted on some rows, measured on the others, mean over seeds. Coverage is the\n"
        "largest that reaches the agreement with hindsight, so parts are compared before any gate.\n"
    )
    for n, size in result["sizes"].items():
        parts.append(f"{int(n):,} rows to fit, {len(size['seeds'])} seeds:\n")
        parts.append(
            "| parts | agreement | AUGRC x 1000 | coverage at 0.95 | at 0.97 | at 0.98 |\n|---|---|---|---|---|---|"
        )
        for name, cell in size["cells"].items():
            parts.append(
                f"| {name} | {cell['agreement']:.3f} | {cell['augrc'] * 1000:.2f} | {cell['coverage_0.95']:.3f} "
                f"| {cell['coverage_0.97']:.3f} | {cell['coverage_0.98']:.3f} |"
            )
        parts.append("")
    parts.append(f"Data digest `{result['digest']}`. {_environment(result)}\n")
    return "\n".join(parts)


def _speed(result: dict[str, Any]) -> str:
    rows = []
    peer = result["runs"].get("tracer-llm")
    for name, run in result["runs"].items():
        label = name if name == "tracer-llm" else f"Tracer, {name} pool"
        ratio = f"{peer['fit_s'] / run['fit_s']:.1f}" if peer else "-"
        rows.append(
            f"| {label} | {run['fit_s']} | {ratio} | {run['peak_mib']:,} | {_percent(run['n_handled'], run['n'])} "
            f"| {_percent(run['n_agreed'], run['n_handled'])} | {run['decision_ms']} |"
        )
    body = "\n".join(rows)
    return f"""## Beside the peer

Banking77, {result["n_traces"]:,} traces with the same embeddings, target 0.95, each fit in a process of its own, one run.
`tracer-llm` is version 0.3.3 with its defaults; it reads embeddings only. A decision of ours starts from the text and its
embedding, the peer's from the embedding.

| system | fit, s | times faster | peak memory, MiB | coverage, test | agreement, test | one decision, ms (median) |
|---|---|---|---|---|---|---|
{body}

Data digest `{result["digest"]}`. {_environment(result)}
"""


def _environment(result: dict[str, Any]) -> str:
    env = result["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in env["packages"].items())
    return f"Measured on {env['cores']} cores ({env['processor']}), Python {env['python']}, {packages}."


_HEAD = """# Benchmarks

Generated from `benchmarks/results/*.json` by `python -m benchmarks.tables`; do not edit. Traces are labelled by a large
language model, embeddings are all-MiniLM-L6-v2. No fit reads the official test sets; while building, some alternatives
were looked at on them too ([decisions.md](decisions.md)). Figures are shares of counts; intervals are Clopper-Pearson.

```
make bench DATA=folder-of-the-data-sets            # banking77, clinc150, nli: train.jsonl and test.jsonl each
make bench-ablations DATA=...
make bench-peer DATA=... PEER=python-with-tracer-llm
```
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
