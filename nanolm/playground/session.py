"""A loaded run on the page: its description, the events of a text, and attention.

Everything is a plain value for JSON. The events of a text, in order:

    {"type": "start", "prompt": [...], "ids": [...], "length": n, "note": ...}   the prompt as the model reads it
    {"type": "token", "id": ..., "text": ..., "piece": ..., "probability": ..., "alternatives": [...]}
    {"type": "end", "finish": "length", "tokens": n, "seconds": ..., "tokens_per_second": ..., "loss": ...}

or, in place of the last one, {"type": "error", "errors": [...]}.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from nanolm.errors import NanolmError, Problems, SettingsError
from nanolm.inference.activations import attention_of_last
from nanolm.inference.engine import Engine, Stream, Token
from nanolm.inference.load import Loaded
from nanolm.inference.logits import window_start
from nanolm.inference.prompt import Prompt
from nanolm.inference.settings import GenerationSettings
from nanolm.inference.text_stream import text_decoder
from nanolm.model.transformer import Transformer
from nanolm.training.memory import translate_memory_errors

# Tokens of the prompt that the page shows; of longer prompts, the last ones.
SHOWN_PROMPT_TOKENS = 400

Event = dict[str, Any]


class PlaygroundRun:
    """A run that writes.

    Args:
        loaded: the run.
        raw: whether to continue prompts as they are for a run of dataset=instructions, too.
        name: shown on the page.
    """

    def __init__(self, loaded: Loaded, *, raw: bool = False, name: str | None = None) -> None:
        self.name = loaded.run.path.name if name is None else name
        self._loaded = loaded
        self._engine = Engine.of(loaded, raw=raw)
        # Recording attention puts hooks on the model, which must see no other pass. Tokens of several texts alternate.
        self._turn = threading.Lock()
        self._parameters: int | None = None
        with contextlib.suppress(NanolmError):  # a damaged summary.json
            self._parameters = loaded.run.read_summary().parameters

    @property
    def has_attention(self) -> bool:
        model = self._loaded.model
        return isinstance(model, Transformer) and len(model.blocks) > 0

    def describe(self) -> dict[str, Any]:
        """Return what the page shows about the run."""
        config, tokenizer = self._loaded.config, self._loaded.tokenizer
        return {
            "name": self.name,
            "path": str(self._loaded.run.path),
            "model": config.model.name,
            "step": self._loaded.step,
            # Those of quantized layers are not parameters of the module.
            "parameters": self._parameters,
            "tokenizer": config.tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
            "context_length": config.size.context_length,
            "has_attention": self.has_attention,
            "is_chat": self._engine.template is not None,
        }

    def events(self, prompt: str, settings: GenerationSettings, is_stopped: Callable[[], bool]) -> Iterator[Event]:
        """Check a request at once, and return the events of its text.

        Args:
            is_stopped: asked before every token; whether nobody waits for the text any more.

        Raises:
            SettingsError, TokenizerError: as Engine.stream.
        """
        stream = self._engine.stream(prompt, settings)
        return self._events(stream, is_stopped)

    def attention(self, tokens: Sequence[int], length: int) -> dict[str, Any]:
        """Compute what the last token of a text attends to.

        Args:
            tokens: the last tokens of the text.
            length: number of all of its tokens.

        Returns:
            `start`, the number of the first token that the model reads, and `weights`, a list LxHxS in thousandths:
            more shades cannot be distinguished.

        Raises:
            SettingsError: the model has no attention, or the tokens are not in its vocabulary or do not fill the
                context.
        """
        context_length = self._engine.context_length
        if not self.has_attention:
            raise SettingsError(f"the model {self._loaded.config.model.name} has no attention", where=self.name)
        vocab_size = self._loaded.tokenizer.vocab_size
        if not all(0 <= token < vocab_size for token in tokens):
            raise SettingsError("a token is not in the vocabulary", where="tokens", hint=f"from 0 to {vocab_size - 1}")
        start = window_start(length, context_length, GenerationSettings().stride_in(context_length))
        n_read = length - start
        if len(tokens) < n_read:
            hint = f"the last {n_read} tokens of the text"
            raise SettingsError(f"there are {len(tokens)} tokens", where="tokens", hint=hint)
        window_T = torch.tensor(list(tokens)[len(tokens) - n_read :], device=self._engine.device)
        model = self._loaded.model
        assert isinstance(model, Transformer)
        with self._turn, translate_memory_errors(self._loaded.config):
            layers = attention_of_last(model, window_T)
        return {
            "start": start,
            "weights": [(weights.float() * 1000).round().int().tolist() for weights in layers],
        }

    def _events(self, stream: Stream, is_stopped: Callable[[], bool]) -> Iterator[Event]:
        prompt = stream.prompts[0]
        yield self._start(prompt)
        try:
            while not is_stopped():
                with self._turn:
                    token = next(stream, None)
                if token is None:
                    break
                yield self._token(token)
        except NanolmError as error:
            yield {"type": "error", "errors": describe_errors(error)}
            return
        yield _end(stream)

    def _start(self, prompt: Prompt) -> Event:
        shown = prompt.tokens[-SHOWN_PROMPT_TOKENS:]
        decoder = text_decoder(self._loaded.tokenizer, ())
        texts = [decoder.add(token) for token in shown]
        texts[-1] += decoder.finish()
        if prompt.start is not None:
            texts = [""] * len(shown)
        return {
            "type": "start",
            "prompt": [
                {"id": token, "text": text, "piece": self._engine.token_text(token)}
                for token, text in zip(shown, texts, strict=True)
            ],
            # The context of any of the tokens shown.
            "ids": list(prompt.tokens[-self._engine.context_length - SHOWN_PROMPT_TOKENS :]),
            "length": len(prompt.tokens),
            "note": prompt.note,
        }

    def _token(self, token: Token) -> Event:
        return {
            "type": "token",
            "id": token.id,
            "text": token.text,
            "piece": self._engine.token_text(token.id),
            "probability": token.probability,
            "alternatives": [
                {"id": each.id, "piece": each.text, "probability": each.probability} for each in token.alternatives
            ],
        }


def playground_runs(loaded: Sequence[Loaded], *, raw: bool = False) -> list[PlaygroundRun]:
    """Prepare runs; the name of each is the end of its path, as long as needed to differ."""
    paths = [each.run.path.absolute() for each in loaded]
    names = [path.name for path in paths]
    if len(set(names)) < len(names) and len(set(paths)) == len(paths):
        names = [str(Path(path.parent.name) / path.name) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return [PlaygroundRun(each, raw=raw, name=name) for each, name in zip(loaded, names, strict=True)]


def describe_errors(error: NanolmError) -> list[dict[str, str]]:
    """Return the parts of an error, or of each of several."""
    problems = error.problems if isinstance(error, Problems) else [error]
    return [{"found": each.found, "where": each.where, "hint": each.hint} for each in problems]


def _end(stream: Stream) -> Event:
    (tokens,) = stream.tokens
    finish = tokens[-1].finish if tokens else None
    return {
        "type": "end",
        "finish": "stopped" if finish is None else finish.value,
        "tokens": len(tokens),
        "seconds": stream.seconds,
        "tokens_per_second": stream.tokens_per_second,
        "loss": -sum(token.log_probability for token in tokens) / len(tokens) if tokens else None,
    }
