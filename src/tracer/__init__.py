"""Tracer: learn a cheap, certified router from the traces of an LLM classifier.

Names are imported when first used, so that serving never loads the training side.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracer.backtesting import backtest as backtest
    from tracer.certification.certificate import Certificate as Certificate
    from tracer.certification.certificate import Refusal as Refusal
    from tracer.config import FitConfig as FitConfig
    from tracer.errors import TracerError as TracerError
    from tracer.features.dense import CallableEmbedder as CallableEmbedder
    from tracer.features.local import SentenceTransformerEmbedder as SentenceTransformerEmbedder
    from tracer.features.remote import OpenAIEmbedder as OpenAIEmbedder
    from tracer.flywheel import fit as fit
    from tracer.flywheel import update as update
    from tracer.pipeline import Certified as Certified
    from tracer.pipeline import Refused as Refused
    from tracer.pipeline import scan as scan
    from tracer.policies.policy import Policy as Policy
    from tracer.policies.registry import PolicyRegistry as PolicyRegistry
    from tracer.serving.router import Router as Router
    from tracer.traces.loading import load_dataset as load_dataset
    from tracer.traces.readers import read_traces as read_traces
    from tracer.traces.store import TraceStore as TraceStore
    from tracer.types import Answer as Answer
    from tracer.types import Dataset as Dataset
    from tracer.types import Decisions as Decisions
    from tracer.types import LabelSpace as LabelSpace
    from tracer.types import Trace as Trace

__version__ = "0.1.0"

_HOMES = {
    "Answer": "tracer.types",
    "CallableEmbedder": "tracer.features.dense",
    "Certificate": "tracer.certification.certificate",
    "Certified": "tracer.pipeline",
    "Dataset": "tracer.types",
    "Decisions": "tracer.types",
    "FitConfig": "tracer.config",
    "LabelSpace": "tracer.types",
    "OpenAIEmbedder": "tracer.features.remote",
    "Policy": "tracer.policies.policy",
    "PolicyRegistry": "tracer.policies.registry",
    "Refusal": "tracer.certification.certificate",
    "Refused": "tracer.pipeline",
    "Router": "tracer.serving.router",
    "SentenceTransformerEmbedder": "tracer.features.local",
    "Trace": "tracer.types",
    "TraceStore": "tracer.traces.store",
    "TracerError": "tracer.errors",
    "backtest": "tracer.backtesting",
    "fit": "tracer.flywheel",
    "load_dataset": "tracer.traces.loading",
    "read_traces": "tracer.traces.readers",
    "scan": "tracer.pipeline",
    "update": "tracer.flywheel",
}

__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605 - sorted() of a literal list


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tracer' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
