"""The model card of an exported model: README.md with its figures, settings and provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanolm.config.fields import flat
from nanolm.inference.load import Loaded
from nanolm.json_text import dump_json
from nanolm.model.build import count_parameters
from nanolm.model.lora import adapters
from nanolm.report.reproduce import command, fork_command, import_command
from nanolm.runs.metrics import VAL, MetricsRow
from nanolm.runs.privacy import private
from nanolm.runs.summary import Summary
from nanolm.wording import LOSSY

# Groups whose settings are listed.
_GROUPS = ("model", "size", "mask", "dataset", "tokenizer", "optimizer", "scheduler", "trainer", "seed")

# Those of an imported model, which was not trained here.
_MODEL_GROUPS = ("model", "size", "mask")

# The library that opens each format, for the hub.
_LIBRARIES = {"huggingface": "transformers", "gguf": "gguf", "safetensors": "safetensors"}

_USES = {
    "huggingface": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the path of this folder
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```

The name of a special token in a text is ordinary text, as in training. With
`AutoTokenizer.from_pretrained(folder, split_special_tokens=False)` it is the special token.""",
    "gguf": """```
llama-cli -m model.gguf -p "To be"
```""",
    "safetensors": """```python
from safetensors.torch import load_file

weights = load_file("model.safetensors")
```

The weights have nanolm's names, and config.json has the settings of the model.""",
}


def model_card(loaded: Loaded, architecture: str, format: str, dtype: str, weights: str) -> str:
    """Write the card in Markdown, with the metadata that the Hugging Face hub reads.

    Paths are shortened as in what is sent to others (nanolm.runs.privacy).

    Args:
        architecture: what the model is.
        format: of the export.
        dtype: of the exported weights.
        weights: "trained" or "ema".
    """
    summary = loaded.run.read_summary()
    name = private(loaded.run.path.resolve().name)
    settings = flat(loaded.config)
    row = next((row for row in loaded.run.iter_metrics(VAL) if row.step == loaded.step), None)
    averages = ", the exponential moving average of the trained ones" if weights == "ema" else ""
    sections = [
        _front_matter(format),
        f"# {name}",
        f"{architecture} with {dtype} weights{averages}, written by nanolm from {_origin(loaded.step, summary)}.",
        _table(_figures(loaded, summary, row, weights)),
        _protocol(summary, row, dtype),
        "## Use",
        _USES[format],
        "## Data",
        _bullets(private(_data(settings, summary))),
        "## Settings",
        "```yaml\n"
        + "\n".join(_listed(private(settings), _MODEL_GROUPS if summary.is_imported else _GROUPS))
        + "\n```",
        *_repeat(loaded, settings, summary),
        _versions(summary),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _origin(step: int, summary: Summary) -> str:
    """What the weights are, such as "step 500 of a run"."""
    if summary.imported:
        revision = summary.imported.get("revision")
        source = private(str(summary.imported.get("source", "")))
        return f"the imported model {source}" + (f", revision {revision}" if revision else "")
    parent = private(Path(str(summary.parent.get("run", ""))).name) if summary.parent else ""
    return f"step {step:,} of a run" + (f" that was forked from {parent}" if parent else "")


def _front_matter(format: str) -> str:
    return f"---\nlibrary_name: {_LIBRARIES[format]}\npipeline_tag: text-generation\ntags:\n- nanolm\n---"


def _figures(loaded: Loaded, summary: Summary, row: MetricsRow | None, weights: str) -> dict[str, str]:
    # Adapters are merged into the weights.
    n_adapters = sum(parameter.numel() for parameter in adapters(loaded.model).values())
    figures = {"parameters": f"{count_parameters(loaded.model) - n_adapters:,}"}
    if summary.entries is not None:
        figures = {"table entries": f"{summary.entries:,}"}
    figures["context length"] = f"{loaded.config.size.context_length:,} tokens"
    figures["vocabulary"] = f"{loaded.tokenizer.vocab_size:,} tokens"
    if row is None:
        return figures
    if row.tokens:
        figures["training tokens"] = f"{row.tokens:,}"
    loss = row.ema_loss if weights == "ema" else row.loss
    if loss is None:
        return figures
    figures["validation loss"] = f"{loss:.4f} nats per token"
    # Both are proportional to the same sum.
    if row.bits_per_byte is not None and row.loss:
        figures["validation bits per byte"] = f"{row.bits_per_byte * loss / row.loss:.4f}"
    return figures


def _protocol(summary: Summary, row: MetricsRow | None, dtype: str) -> str:
    if row is None:
        return "This step was not evaluated: `nanolm evaluate` computes its loss."
    count = summary.val_scored_tokens
    tokens = "Every token" if count is None else f"Each of the {count:,} tokens"
    text = (
        f"{tokens} of the validation split was scored once, in order, in windows of the context length with a stride "
        "of the context length."
    )
    if summary.is_lossy:
        text += f" {LOSSY[0].upper()}{LOSSY[1:]}."
    return text if dtype == "float32" else f"{text} The loss is of the weights before they were rounded to {dtype}."


def _data(settings: dict[str, Any], summary: Summary) -> dict[str, Any]:
    if summary.imported:
        return {
            "imported from": summary.imported.get("source"),
            "revision": summary.imported.get("revision"),
            "SHA-256 of the tokenizer": summary.tokenizer,
        }
    counts = (summary.train_tokens, summary.val_tokens)
    return {
        "dataset": settings["dataset.name"],
        "tokens": None if None in counts else "{:,} train and {:,} val".format(*counts),
        "SHA-256 of the text": summary.corpus,
        "SHA-256 of the tokenizer": summary.tokenizer,
    }


def _listed(settings: dict[str, Any], groups: tuple[str, ...]) -> list[str]:
    """The settings as YAML, nested by their groups."""
    lines: list[str] = []
    for group in groups:
        if group in settings:
            lines.append(f"{group}: {dump_json(settings[group])}")
        of_group = {key: value for key, value in settings.items() if key.startswith(f"{group}.")}
        if of_group:
            lines.append(f"{group}:")
        lines += [
            f"  {key.partition('.')[2]}: {dump_json(value, ensure_ascii=False)}" for key, value in of_group.items()
        ]
    return lines


def _repeat(loaded: Loaded, settings: dict[str, Any], summary: Summary) -> list[str]:
    if summary.imported:
        line = import_command(loaded.run.path, summary.imported)
    elif summary.parent:
        line = fork_command(settings, summary.parent)
    else:
        line = command(settings, summary.choices)
    return ["## Repeat it", f"```\n{private(line)}\n```"] if line else []


def _versions(summary: Summary) -> str:
    made = ", ".join(f"{name} {version}" for name, version in summary.versions.items())
    return f"Made with {made}." if made else ""


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def _bullets(items: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in items.items() if value is not None)
