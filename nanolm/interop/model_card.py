"""The model card of an exported model: README.md with its figures, settings and provenance."""

from __future__ import annotations

from nanolm.config.fields import flat
from nanolm.inference.load import Loaded
from nanolm.model.build import count_parameters
from nanolm.runs.metrics import VAL
from nanolm.wording import LOSSY

# Groups whose settings are listed.
_GROUPS = ("model", "size", "mask", "tokenizer", "optimizer", "scheduler", "trainer")


def model_card(loaded: Loaded, architecture: str, dtype: str, command: str = "") -> str:
    """Write the card in Markdown, with the metadata that the Hugging Face hub reads.

    Args:
        architecture: name of the exported architecture.
        dtype: of the exported weights.
        command: repeats the run; left out if it is empty.
    """
    summary = loaded.run.read_summary()
    settings = flat(loaded.config)
    evaluated = next((row for row in loaded.run.read_metrics(VAL) if row.step == loaded.step), None)
    figures = [
        ("parameters", f"{count_parameters(loaded.model):,}"),
        ("step", f"{loaded.step:,}"),
        ("validation loss, nats per token", "" if evaluated is None else f"{evaluated.loss:.4f}"),
        (
            "bits per byte",
            "" if evaluated is None or evaluated.bits_per_byte is None else f"{evaluated.bits_per_byte:.4f}",
        ),
    ]
    rows = [f"| {name} | {value} |" for name, value in figures if value]
    listed = [f"{key}: {value}" for key, value in settings.items() if key.split(".")[0] in _GROUPS]
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions.items())
    lines = [
        "---",
        "library_name: transformers" if architecture != "nanolm" else "library_name: nanolm",
        "pipeline_tag: text-generation",
        "tags: [nanolm]",
        "---",
        "",
        f"# {loaded.run.path.resolve().name}",
        "",
        f"A {architecture} with {dtype} weights, trained with nanolm and exported from step {loaded.step:,}.",
        "",
        "| | |",
        "| --- | --- |",
        *rows,
        "",
        "The loss is exact: every token of the validation split is scored once, in windows of the context length"
        + (f"; {LOSSY}." if summary.lossless is False else "."),
        "",
        "## Data",
        "",
        f"- dataset: {settings['dataset.name']}",
        f"- SHA-256 of the text: {summary.corpus}",
        f"- SHA-256 of the tokenizer: {summary.tokenizer}",
        f"- tokens for training and validation: {summary.train_tokens}, {summary.val_tokens}",
        "",
        "## Settings",
        "",
        "```yaml",
        *listed,
        f"seed: {settings['seed']}",
        "```",
        "",
        *(["## Repeat it", "", "```", command, "```", ""] if command else []),
        f"Made with {versions}." if versions else "",
    ]
    return "\n".join(lines).rstrip() + "\n"
