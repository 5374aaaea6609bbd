"""Options that several verbs share, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Log = Annotated[Path, typer.Argument(help="A log of LLM calls: JSONL, CSV, Parquet, OpenAI chat or LiteLLM.")]
OptionalLog = Annotated[
    Path | None, typer.Argument(help="A log of LLM calls; without one, what the home's store holds.")
]
Home = Annotated[Path, typer.Option("--home", help="Folder of traces, cache and policies.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Embeddings = Annotated[
    Path | None,
    typer.Option(help="Precomputed embeddings (.npy), row by row; TRACES.npy beside the log is found."),
]
Embedder = Annotated[
    str | None,
    typer.Option(
        help="Sentence-transformers name or folder, onnx:FOLDER of an exported encoder, or openai:MODEL for an "
        "/v1/embeddings endpoint."
    ),
]
InputField = Annotated[str | None, typer.Option(help="Key of the input text; dotted paths reach inside.")]
LabelField = Annotated[str | None, typer.Option(help="Key of the teacher's label.")]
Format = Annotated[
    str | None,
    typer.Option("--format", help="jsonl, csv, parquet, openai-chat or litellm; guessed where not given."),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out, and list them.")]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", help="File with the allowed labels, one a line: others count as disagreements."),
]
Task = Annotated[str, typer.Option(help="Name of the task in a database that several share.")]
Target = Annotated[
    list[float] | None,
    typer.Option("--target", "-t", help="Agreement to hold on handled traffic; repeat for a frontier."),
]
OptionalDelta = Annotated[
    float | None,
    typer.Option(
        help="Probability that a promoted policy is below its target: 0.05, or what a gateway asks of this home."
    ),
]
Delta = Annotated[float, typer.Option(help="Probability that a promoted policy is below its target.")]
Pool = Annotated[str, typer.Option(help="lean or full.")]
Features = Annotated[str, typer.Option(help="auto, lexical, dense or both.")]
Seed = Annotated[int, typer.Option(help="Seed of whatever is random in training.")]
Model = Annotated[str | None, typer.Option("--model", help="The teacher's model name, for its price.")]
Price = Annotated[str | None, typer.Option(help="Dollars a million tokens, input/output, such as 3/15.")]
Tokens = Annotated[str, typer.Option(help="Tokens of one teacher call, input/output.")]
Volume = Annotated[int, typer.Option("--calls-per-day", help="Calls a day, for the saving.")]
