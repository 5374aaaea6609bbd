"""The facts as Markdown, for a pull request or a chat. The same figures as the page, fewer examples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tracer.reporting.html import SECTIONS, sections
from tracer.reporting.words import NOTHING, dec, groupby_kept, moved_most, num, pct, points, short, usd

_SPECIAL = re.compile(r"([\\`*_\[\]<>#!|~&@]|:(?=//)|^[-+=]|^\d+(?=[.)]))")
_EXAMPLES, _LABELS = 6, 50


def document(facts: Mapping[str, Any]) -> str:
    """The report as one Markdown document."""
    made = facts["made"]
    lines = [f"# {facts['verdict'].capitalize()}: {_say(facts['headline'], 2000)}", ""]
    if facts["certificate"]:
        lines += [_say(facts["certificate"]["statement"], 2000), ""]
    if facts["refusal"]:
        lines += [_say(facts["refusal"]["reason"], 2000), ""]
        lines += [*(f"- {_say(line, 2000)}" for line in facts["refusal"]["advice"]), ""]
    if facts["missing"]:
        lines += [f"Not shown: {_say(facts['missing'], 2000)}", ""]
    if facts["ownership"]:
        lines += [*_ownership(facts["ownership"]), f"On {_say(made['stands_on'], 2000)}.", ""]
    for name in sections(facts):
        if name in _WRITERS:
            lines += [f"## {SECTIONS[name][1]}", "", *_WRITERS[name](facts), ""]
    return "\n".join(lines)


def _ownership(own: Mapping[str, Any]) -> list[str]:
    rows = [
        ["handled, the teacher agrees", num(own["n_agreed"]), pct(own["n_agreed"] / own["n"])],
        ["handled, the teacher differs", num(own["n_handled"] - own["n_agreed"]),
         pct((own["n_handled"] - own["n_agreed"]) / own["n"])],
        *([f"deferred: {why['words']}", num(why["n"]), pct(why["n"] / own["n"])] for why in own["reasons"]),
    ]  # fmt: skip
    return _table(["what happens", "requests", "share"], rows)


def _frontier(facts: Mapping[str, Any]) -> list[str]:
    target, point = facts["frontier"]["target"], facts["frontier"]["point"]
    rows = []
    for row in facts["frontier"]["rows"]:
        name = dec(row["target"]) + (f" ({facts['verdict']})" if row["target"] == target else "")
        if row["target"] == target and facts["certificate"]:
            low = f"at least {pct(point['low'], 2)}" if facts["verdict"] == "certified" else _interval(point)
            rows.append([name, pct(point["coverage"]), _counted(point), low])
        elif row["coverage"] >= 0.05:
            counted = [_counted(row), _interval(row)] if row["n_handled"] else [NOTHING, NOTHING]
            rows.append([name, f"about {pct(row['coverage'])}", *counted])
        else:
            rows.append([name, "refusal likely", NOTHING, NOTHING])
    return _table(["target", "would handle", "held-out rows agree there", "agreement, 95%"], rows)


def _classes(facts: Mapping[str, Any]) -> list[str]:
    rows = [
        [_say(x["label"]), num(x["n"]), pct(x["coverage"]), pct(x["agreement"]), _interval(x), num(x["n_disagreed"])]
        for x in facts["classes"]
    ]
    return _table(["label", "traces", "handled", "agreement on handled", "95% interval", "wrong"], rows)


def _disagreements(facts: Mapping[str, Any]) -> list[str]:
    lines = [f"- {_say(line, 2000)}" for line in facts["diagnosis"]]
    for card in facts["artefacts"]["disagreements"]["cards"][:_EXAMPLES]:
        given = ", ".join(f"{_say(g['label'])} {num(g['n'])}" for g in card["given"])
        lines += ["", f"Surrogate says **{_say(card['predicted'])}**, the teacher differs on {num(card['n'])} of "
                  f"{num(card['n_predicted'])}, {num(card['n_handled'])} of them handled: {given}", ""]  # fmt: skip
        lines += [f"> {_example(e)}\n" for e in card["examples"]]
    return lines


def _deltas(facts: Mapping[str, Any]) -> list[str]:
    d = facts["artefacts"]["deltas"]
    o = d["overall"]
    rows = [
        [_say(x["label"]), pct(x["n_handled_before"] / x["n"]), pct(x["n_handled_after"] / x["n"]),
         points(x["handled_change"]), f"{num(x['n_gained'])}, {num(x['n_lost'])}",
         "yes" if x["handled_beyond_noise"] or x["agreement_beyond_noise"] else "no"]
        for x in moved_most(d["labels"])[:_LABELS]
    ]  # fmt: skip
    said = (
        f"On the same {num(o['n'])} rows: handled {pct(o['n_handled_before'] / o['n'])} with {d['previous']}, "
        f"{pct(o['n_handled_after'] / o['n'])} now ({points(o['handled_change'])}); {num(o['n_gained'])} rows gained, "
        f"{num(o['n_lost'])} lost."
    )
    return [said, "", *_table(["label", "before", "now", "change", "gained, lost", "beyond noise"], rows)]


def _slices(facts: Mapping[str, Any]) -> list[str]:
    found = facts["artefacts"]["slices"]["found"]["found"]
    lines = []
    for x in found:
        word = "deferred" if x["outcome"] == "handled" else "wrong on"
        rates = f"({pct(1 - x['rate_inside'], 0)}), elsewhere {pct(1 - x['rate_outside'], 0)}"
        lines.append(f"- {_say(x['rule'])}: {word} {num(x['n_bad_inside'])} of {num(x['n_inside'])} {rates}")
    return lines or ["None stands out from the rest."]


def _pairs(facts: Mapping[str, Any]) -> list[str]:
    close = [p for p in facts["artefacts"]["pairs"]["pairs"] if p["chosen"] == "closeness"]
    return [
        line
        for p in close[:_EXAMPLES]
        for line in (f"**{_say(p['label'])}**\n", f"> {_example(p['handled'])}\n", f"> {_example(p['deferred'])}\n")
    ]


def _cards(facts: Mapping[str, Any]) -> list[str]:
    groups = groupby_kept(facts["artefacts"]["cards"]["cards"], "label")[:_EXAMPLES]
    return [f"> {_example(card['example'])}\n" for _, cards in groups for card in cards]


def _quality(facts: Mapping[str, Any]) -> list[str]:
    q = facts["quality"]
    lines = [_say(q["self_agreement"]["statement"], 2000)] if q["self_agreement"] else []
    if q["accuracy"]:
        rows = [[who, f"{num(s['n_right'])} of {num(s['n'])}", pct(s["rate"])] for who, s in q["accuracy"].items()]
        lines += ["", *_table(["answers of", "right", "accuracy"], rows), ""]
    lines.append(
        f"{num(q['conflicts']['n_pairs'])} near-duplicates labelled differently, "
        f"{num(len(q['likely_errors']))} labels worth a second look."
    )
    return lines


def _range(saving: Mapping[str, Any]) -> str:
    if saving["saved_year_least"] is None:
        return "if the gate passes there"
    return f"{usd(saving['saved_year_least'], 0)} to {usd(saving['saved_year_most'], 0)}"


def _money(facts: Mapping[str, Any]) -> list[str]:
    money = facts["money"]
    if not money or money["call_usd"] is None:
        return [f"The price of a teacher call is {_say(money['source']) if money else 'unknown'}."]
    rows = [
        [dec(s["target"]), pct(s["n_handled"] / s["n"]), usd(s["before_day"]), usd(s["after_day"]),
         f"{usd(s['saved_year'], 0)} ({_range(s)})"]
        for s in money["savings"]
    ]  # fmt: skip
    said = (
        f"A teacher call costs {usd(money['call_usd'], 6)} ({_say(money['source'])}); "
        f"{num(money['calls_per_day'])} calls a day, {pct(money['audit_rate'])} of them audited by the teacher."
    )
    return [said, "", *_table(["target", "handled", "a day before", "a day after", "saved a year"], rows)]


def _made(facts: Mapping[str, Any]) -> list[str]:
    made = facts["made"]
    rows = [
        [_say(a["candidate"]), f"{num(a['n_handled'])} of {num(a['n_shadow'])}", num(a["n_agreed"]), dec(a["p_value"]),
         dec(a["level"]), "yes" if a["certified"] else "no"]
        for a in made["attempts"]
    ]  # fmt: skip
    said = (
        f"Tracer {made['tracer']}; policy {made['version'] or 'none'}; surrogate {_say(made['surrogate'] or 'none')}; "
        f"{num(made['n_traces'])} traces, {num(made['n_train'])} train, {num(made['n_shadow'])} shadow; "
        f"{num(made['n_labels'])} labels; threshold {dec(made['threshold'])}."
    )
    return [said, "", *_table(["candidate", "handled", "agreed", "p-value", "level", "passed"], rows)]


_WRITERS = {
    "disagreements": _disagreements, "frontier": _frontier, "classes": _classes, "deltas": _deltas,
    "slices": _slices, "pairs": _pairs, "cards": _cards, "quality": _quality, "money": _money, "made": _made,
}  # fmt: skip


def _example(e: Mapping[str, Any]) -> str:
    decision = "handled" if e["handled"] else "deferred"
    said = "" if e["predicted"] == e["label"] else f", surrogate {_say(e['predicted'])}"
    return f"{_say(e['text'] or e['id'], 240)} ({decision}; teacher {_say(e['label'])}{said}; score {dec(e['score'])})"


def _counted(row: Mapping[str, Any]) -> str:
    return f"{num(row['n_agreed'])} of {num(row['n_handled'])} ({pct(row['agreement'])})"


def _interval(row: Mapping[str, Any]) -> str:
    return NOTHING if row["low"] is None else f"{pct(row['low'])} to {pct(row['high'])}"


def _say(text: str, longest: int = 80) -> str:
    """A text on one line that no renderer takes for markup, a link or a mention."""
    return _SPECIAL.sub(r"\\\1", short(" ".join(text.split()), longest))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" * len(heads),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
