"""The verb that writes a report: report."""

from __future__ import annotations

import json as jsonlib
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tracer import flywheel, pipeline, storage
from tracer.certification.certificate import Refusal
from tracer.cli import options
from tracer.cli.common import call_price, errors_as_exits, out, progress_bar
from tracer.cli.explaining import stored
from tracer.errors import ConfigError
from tracer.explanations.asking import ASKED_TWICE, about, read_asked
from tracer.explanations.consistency import asked_again
from tracer.features.sources import embedder_from_name
from tracer.learning.crossfit import Progress
from tracer.pipeline import Refused, Verdict
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.reporting import html, markdown
from tracer.reporting.context import Facts
from tracer.reporting.gathering import Pricing, gather

_ENDINGS = {"html": ".html", "json": ".json", "markdown": ".md"}


def report(
    home: options.Home = Path(flywheel.HOME),
    file: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; report.html, .json or .md if not given.")
    ] = None,
    version: Annotated[
        str | None, typer.Option("--policy", "--version", help="Another version than the active one.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="html, json or markdown; by the file's ending if not given.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Run the last gate again, in memory: its verdict, though another policy is in force."
        ),
    ] = False,
    model: options.Model = None,
    price: options.Price = None,
    tokens: options.Tokens = "800/15",
    calls_per_day: Annotated[
        int, typer.Option("--calls-per-day", "--volume", help="Calls a day, for the saving.")
    ] = 10_000,
    audit_rate: Annotated[
        float, typer.Option(help="Share of calls that go to the teacher as audits, for the saving.")
    ] = 0.02,
    encoder_usd: Annotated[str, typer.Option(help="Dollars of one call of a paid encoder, for the saving.")] = "0",
) -> None:
    """One self-contained page: what the surrogate owns, what it defers and why, and what changed.

    Where the gate refused and no policy is active, the fit is run again in memory and its refusal reported.
    """
    with errors_as_exits():
        form = _form(form, file)
        target = file or Path(f"report{_ENDINGS[form]}")
        if home.resolve() in target.resolve().parents:
            raise ConfigError(f"--out {target}: lies in the home folder, whose files are not to be overwritten")
        call_usd, source = call_price(model, price, tokens)
        if call_usd is None and model is not None:
            out.print(f"[yellow]no price[/]: {escape(source)}; give --price", soft_wrap=True)
        pricing = Pricing(call_usd, source, calls_per_day, audit_rate, _dollars(encoder_usd))
        with progress_bar(quiet=False) as progress:
            facts = _facts(home, version, pricing, progress, again=again)
        text = {"html": html.page, "markdown": markdown.document, "json": _json}[form](facts)
        content = text.encode()
        storage.write_atomic(target, content)
        out.print(f"{facts['verdict']}: {escape(facts['headline'])}", soft_wrap=True)
        out.print(f"wrote {escape(str(target))}, {len(content) / 1000:,.0f} kB", soft_wrap=True)


def _facts(home: Path, version: str | None, pricing: Pricing, progress: Progress, *, again: bool) -> Facts:
    registry = PolicyRegistry(home)
    dataset, config = stored(home)
    answers = about(dataset, read_asked(home / ASKED_TWICE))
    twice = asked_again(answers) if answers else None
    if not again and (version is not None or registry.active_version() is not None):
        loaded = registry.load(version)
        return gather(
            loaded, loaded.report, dataset, config,
            previous=_before(registry, loaded), pricing=pricing, self_agreement=twice,
        )  # fmt: skip
    verdict = _again(home, registry, progress)
    policy, refusal, previous = _outcome(verdict, registry)
    return gather(
        policy, verdict.report.as_dict(), dataset, config,
        refusal=refusal, previous=previous, pricing=pricing, self_agreement=twice,
    )  # fmt: skip


def _outcome(verdict: Verdict, registry: PolicyRegistry) -> tuple[Policy | None, Refusal | None, Policy | None]:
    """Policy, refusal and the policy before; what was refused replaces nothing, so there is nothing before it."""
    if isinstance(verdict, Refused):
        return verdict.best, verdict.refusal, None
    return verdict.policy, None, _before(registry, verdict.policy)


def _again(home: Path, registry: PolicyRegistry, progress: Progress) -> Verdict:
    """The verdict of the stored traces with the home's settings. Fits are deterministic, and nothing is written."""
    dataset, config = stored(home)
    settings = flywheel.Settings.read(home)
    name = settings.embedder if settings is not None else None
    encodings = None
    if name is not None and dataset.dense is not None:
        encodings = flywheel.encode_names(dataset, embedder_from_name(name, cache=home / "cache"))
    return pipeline.fit(
        dataset, config, progress=progress, attempt=settings.attempts if settings is not None else 1,
        parent=registry.active_version(), encodings=encodings,
    )  # fmt: skip


def _before(registry: PolicyRegistry, policy: Policy) -> Policy | None:
    """The policy that was in force before, where it is still there."""
    return registry.load(policy.parent) if policy.parent in registry.versions() else None


def _dollars(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise ConfigError(f"--encoder-usd {text!r}: must be dollars, such as 0.00002")
    return amount


def _form(form: str | None, file: Path | None) -> str:
    if form is None:
        named = {ending: name for name, ending in _ENDINGS.items()}
        if file is not None and file.suffix.lower() not in named:
            raise ConfigError(f"--out {file}: end it in {', '.join(named)}, or give --format")
        return named[file.suffix.lower()] if file is not None else "html"
    if form not in _ENDINGS:
        raise ConfigError(f"--format {form!r}: must be html, json or markdown")
    return form


def _json(facts: Facts) -> str:
    return jsonlib.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
