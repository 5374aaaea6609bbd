"""The flywheel: traces come in, policies are fitted, gated, promoted, watched, and fitted again. Floor 7."""

from __future__ import annotations

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
