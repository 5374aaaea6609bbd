"""The flywheel: traces come in, policies are fitted, gated, promoted, watched, and fitted again. Floor 7.

Names are imported when first used, so that a gateway, which reads settings here, never loads the training side.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracer.flywheel.deciding import OnRefusal as OnRefusal
    from tracer.flywheel.fitting import fit as fit
    from tracer.flywheel.homes import ARTEFACTS as ARTEFACTS
    from tracer.flywheel.homes import DATABASE_URL as DATABASE_URL
    from tracer.flywheel.homes import HOME as HOME
    from tracer.flywheel.homes import WARM as WARM
    from tracer.flywheel.homes import store_of as store_of
    from tracer.flywheel.homes import stored_traces as stored_traces
    from tracer.flywheel.reading import embed_dataset as embed_dataset
    from tracer.flywheel.reading import encode_names as encode_names
    from tracer.flywheel.reading import read as read
    from tracer.flywheel.settings import Line as Line
    from tracer.flywheel.settings import Settings as Settings
    from tracer.flywheel.updating import update as update

_MODULES = {
    "deciding": ("OnRefusal",),
    "fitting": ("fit",),
    "homes": ("ARTEFACTS", "DATABASE_URL", "HOME", "WARM", "store_of", "stored_traces"),
    "reading": ("embed_dataset", "encode_names", "read"),
    "settings": ("Line", "Settings"),
    "updating": ("update",),
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
