"""The verb that prepares an encoder for serving: export-encoder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tracer.cli import options
from tracer.cli.common import errors_as_exits, out, print_json
from tracer.features import onnx


def export_encoder(
    source: Annotated[str, typer.Argument(help="A local sentence-transformers folder, or a package that carries one.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the export.")],
    int8: Annotated[bool, typer.Option("--int8", help="Eight bits a weight: faster, and another embedder.")] = False,
    json: options.Json = False,
) -> None:
    """Export a sentence encoder to ONNX, and check its vectors against the source's.

    The export serves without PyTorch, as --embedder onnx:FOLDER.
    """
    with errors_as_exits():
        manifest = onnx.export_encoder(source, folder, int8=int8)
        name = f"onnx:{folder}"
        if json:
            print_json({"embedder": name, **asdict(manifest)})
            return
        steps, parity = manifest.steps, manifest.parity
        size = (folder.expanduser() / onnx.MODEL).stat().st_size / 1e6
        out.print(f"exported {escape(source)} to {escape(str(folder))}: {steps.precision}, {size:.0f} MB")
        if int8:
            out.print(
                f"on {parity.n_texts} texts the cosine to the source's vectors is {parity.mean_cosine:.4f} on average, "
                f"{parity.min_cosine:.4f} at worst\n"
                f"this is an embedder of its own: fit with --embedder {escape(name)}"
            )
        else:
            out.print(
                f"on {parity.n_texts} texts its vectors differ from the source's by at most "
                f"{parity.worst_difference:.1e}\n"
                f"policies fitted with the source take it: route with --embedder {escape(name)}"
            )
