"""The generation engine: batches of texts, written token by token.

    engine = Engine.of(load_run("outputs/my_run"))
    settings = GenerationSettings(max_new_tokens=100, temperature=0.8, seed=1)
    for token in engine.stream("To be", settings):
        print(token.text, end="", flush=True)

The command line, the Python API and anything else that generates text use it. A stream has its own state: several may
be open at the same time, also in threads of their own.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import nn

from nanolm.config.dataset import TemplateConfig
from nanolm.data.conversation import response_ends, template_of
from nanolm.data.tokenizers import Tokenizer
from nanolm.errors import DivergedError, SettingsError
from nanolm.inference.load import Loaded
from nanolm.inference.logits import logits_source
from nanolm.inference.prompt import Prompt, encode_prompt, end_token
from nanolm.inference.sampling import draw, process, uniform_draws
from nanolm.inference.settings import GenerationSettings
from nanolm.inference.text_stream import StopScanner, text_decoder
from nanolm.training.memory import translate_memory_errors


class Finish(enum.Enum):
    """Why a text has ended."""

    length = "length"  # max_new_tokens
    eos = "eos"  # an end-of-text token
    stop = "stop"  # a stop string


@dataclasses.dataclass(frozen=True, slots=True)
class Alternative:
    """A token that the model found likely at some position."""

    id: int
    text: str
    probability: float


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """A generated token.

    Attributes:
        sample: index of the text in the batch.
        index: 0 for the first new token of the text.
        id: the token.
        text: characters that are now complete. It may be empty: a character of several tokens is part of the last of
            them, and what may be the beginning of a stop string is held back. The texts of all tokens, joined, are the
            text of the sample.
        log_probability: natural logarithm of the probability that the model gives the token, before any sampler.
        alternatives: the most likely tokens at this position, before any sampler; settings.alternatives of them.
        finish: why the text ends with this token; None if it continues.
    """

    sample: int
    index: int
    id: int
    text: str
    log_probability: float
    alternatives: tuple[Alternative, ...] = ()
    finish: Finish | None = None

    @property
    def probability(self) -> float:
        """Probability that the model gives the token, before any sampler."""
        return math.exp(self.log_probability)


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generated text.

    Attributes:
        prompt: the text that it continues.
        text: the new text, without a stop string.
        tokens: the new tokens.
        seed: of this sample.
        finish: why it has ended; None if the stream was stopped.
    """

    prompt: Prompt
    text: str
    tokens: tuple[Token, ...]
    seed: int
    finish: Finish | None


class Stream(Iterator[Token]):
    """Tokens of a batch, in the order of its texts at every position.

    Attributes:
        prompts, seeds: of each text.
        tokens: tokens so far, by text.
        first_seconds: time until the first token, prefill included.
        seconds: time until the last token so far.
    """

    def __init__(self, prompts: Sequence[Prompt], seeds: Sequence[int], tokens: Iterator[Token]) -> None:
        self.prompts, self.seeds = tuple(prompts), tuple(seeds)
        self.tokens: list[list[Token]] = [[] for _ in prompts]
        self.first_seconds = self.seconds = 0.0
        self._tokens = tokens
        self._is_stopped = False
        self._began: float | None = None

    def __next__(self) -> Token:
        if self._is_stopped:
            raise StopIteration
        if self._began is None:
            self._began = time.perf_counter()
        token = next(self._tokens)
        self.seconds = time.perf_counter() - self._began
        self.first_seconds = self.first_seconds or self.seconds
        self.tokens[token.sample].append(token)
        return token

    def stop(self) -> None:
        """End the stream after the current token; may be called from another thread."""
        self._is_stopped = True

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all texts per second, prefill included."""
        return sum(map(len, self.tokens)) / self.seconds if self.seconds else 0.0

    def generations(self) -> list[Generation]:
        """Return the texts so far."""
        return [
            Generation(
                prompt, "".join(t.text for t in tokens), tuple(tokens), seed, tokens[-1].finish if tokens else None
            )
            for prompt, seed, tokens in zip(self.prompts, self.seeds, self.tokens, strict=True)
        ]


class Engine:
    """Generates text with one model.

    Args:
        model: module that maps tokens_BxT to logits_BxTxV. If it has `make_cache`, keys and values are cached.
        context_length: largest number of tokens that the model reads.
        name, step: of the run, for messages.
        template: template of messages to respond to; None for texts to continue.
        translate_errors: context in which the model is called.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        context_length: int,
        device: torch.device | str = "cpu",
        name: str = "",
        step: int = 0,
        template: TemplateConfig | None = None,
        translate_errors: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.name, self.step = name, step
        self.context_length = context_length
        self.device = torch.device(device)
        self.template = template
        self._translate_errors = translate_errors
        self._end_token = end_token(tokenizer)
        self._token_texts: dict[int, str] = {}

    @classmethod
    def of(cls, loaded: Loaded, *, raw: bool = False) -> Self:
        """Make the engine of a loaded run.

        Args:
            raw: whether to continue prompts as they are for a run of dataset=instructions, too.
        """
        config = loaded.config
        return cls(
            loaded.model,
            loaded.tokenizer,
            config.size.context_length,
            loaded.device,
            str(loaded.run.path),
            loaded.step,
            None if raw else template_of(config.dataset),
            lambda: translate_memory_errors(config),
        )

    def generate(
        self, prompts: str | Sequence[str], settings: GenerationSettings | None = None, samples: int = 1
    ) -> list[Generation]:
        """Generate whole texts; arguments as in `stream`."""
        stream = self.stream(prompts, settings, samples)
        for _ in stream:
            pass
        return stream.generations()

    def stream(
        self, prompts: str | Sequence[str], settings: GenerationSettings | None = None, samples: int = 1
    ) -> Stream:
        """Generate token by token.

        Args:
            prompts: one text, or a batch of texts of any lengths; messages to respond to if there is a template.
            settings: defaults if None.
            samples: number of texts per prompt. Sample i of a prompt has the seed settings.seed + i, and is the text
                that this seed gives alone.

        Raises:
            SettingsError: a setting is out of range, or a prompt is empty with nothing to start from, or too long.
            TokenizerError: a prompt has something that is not in the vocabulary.
            DivergedError: from the iteration: the logits of the model are not finite.
            OutOfMemoryError: from the iteration: an allocation failed.
        """
        settings = GenerationSettings() if settings is None else settings
        settings.check(self.context_length)
        if samples < 1:
            raise SettingsError(f"--samples is {samples}", where="--samples", hint="1 or more")
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        encoded = [encode_prompt(self.tokenizer, text, self.template) for text in texts]
        if self.template is not None:
            stop = (*settings.stop, *response_ends(self.template, self.tokenizer))
            settings = dataclasses.replace(settings, stop=stop)
        batch = [prompt for prompt in encoded for _ in range(samples)]
        seeds = [settings.seed + sample for _ in encoded for sample in range(samples)]
        return Stream(batch, seeds, self._tokens(batch, seeds, settings))

    def shown_prompt(self, prompt: Prompt) -> str:
        """Return the beginning of the shown text: the prompt as the tokenizer decodes it; "" for a message."""
        return "" if prompt.start is not None or prompt.is_message else self.tokenizer.decode(prompt.tokens)

    def token_text(self, token: int) -> str:
        r"""Return the text of a token on its own; bytes that are not a character are written as \xNN."""
        if token not in self._token_texts:
            pieces = getattr(self.tokenizer, "pieces", None)
            self._token_texts[token] = (
                self.tokenizer.decode([token])
                if pieces is None
                else pieces[token].decode("utf-8", errors="backslashreplace")
            )
        return self._token_texts[token]

    def _tokens(self, prompts: Sequence[Prompt], seeds: Sequence[int], settings: GenerationSettings) -> Iterator[Token]:
        """Yield the tokens of a batch."""
        writers = [_Writer(self, row, prompt, settings) for row, prompt in enumerate(prompts)]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        source = seen_BxV = None
        while writers:
            with self._translate_errors(), torch.inference_mode():
                if source is None:
                    source = logits_source(
                        self.model,
                        len(writers),
                        context_length=self.context_length,
                        stride=settings.stride_in(self.context_length),
                        max_new_tokens=settings.max_new_tokens,
                        use_cache=settings.use_cache,
                        device=self.device,
                    )
                logits_BxV = source.next_logits([writer.text for writer in writers])
                if settings.repetition_penalty != 1 and seen_BxV is None:
                    seen_BxV = _seen(writers, logits_BxV)
                rows = _sample(logits_BxV, seen_BxV, generators, settings)
                if seen_BxV is not None:
                    numbers_Bx1 = torch.tensor([[row[0]] for row in rows], dtype=torch.int64, device=seen_BxV.device)
                    seen_BxV.scatter_(1, numbers_Bx1, True)
            _require_finite(rows, writers)
            tokens = [writer.add(row) for writer, row in zip(writers, rows, strict=True)]
            yield from tokens
            going = [n for n, token in enumerate(tokens) if token.finish is None]
            if len(going) < len(tokens):
                writers, generators = [writers[n] for n in going], [generators[n] for n in going]
                source.keep(going)
                seen_BxV = None if seen_BxV is None else seen_BxV[going]


class _Writer:
    """One text of a batch.

    Attributes:
        text: tokens of the prompt and the new ones.
    """

    def __init__(self, engine: Engine, sample: int, prompt: Prompt, settings: GenerationSettings) -> None:
        self.text = list(prompt.tokens)
        self._engine, self._sample, self._settings = engine, sample, settings
        self._n_prompt = len(self.text)
        self._end_token = None if settings.ignore_eos else engine._end_token
        self._decoder = text_decoder(engine.tokenizer, prompt.tokens)
        self._scanner = StopScanner(settings.stop)

    def add(self, row: list[float]) -> Token:
        """Append a token; the row is one of `_sample`."""
        token, log_probability = int(row[0]), row[1]
        self.text.append(token)
        index = len(self.text) - self._n_prompt - 1
        finish = None
        text = ""
        if token == self._end_token:
            finish = Finish.eos
        else:
            text, is_stopped = self._scanner.add(self._decoder.add(token))
            if is_stopped:
                finish = Finish.stop
            elif index + 1 == self._settings.max_new_tokens:
                finish = Finish.length
        if finish in (Finish.eos, Finish.length):
            rest, is_stopped = self._scanner.add(self._decoder.finish())
            text += rest
            finish = Finish.stop if is_stopped else finish
            text += self._scanner.finish()
        # A small vocabulary has fewer tokens than settings.alternatives.
        count = (len(row) - 3) // 2
        alternatives = tuple(
            Alternative(int(number), self._engine.token_text(int(number)), math.exp(logarithm))
            for number, logarithm in zip(row[3 : 3 + count], row[3 + count :], strict=True)
        )
        return Token(self._sample, index, token, text, log_probability, alternatives, finish)


def _sample(
    logits_BxV: torch.Tensor,
    seen_BxV: torch.Tensor | None,
    generators: Sequence[torch.Generator],
    settings: GenerationSettings,
) -> list[list[float]]:
    """Draw a token of each row, and copy what is reported on it to the host at once.

    Returns:
        For each row: token, log-probability, largest logit, then the most likely tokens and their log-probabilities.
    """
    processed_BxV = process(logits_BxV, seen_BxV, settings)
    if settings.temperature == 0:
        tokens_B = processed_BxV.argmax(dim=-1)
    else:
        tokens_B = draw(processed_BxV, uniform_draws(generators, logits_BxV.device))
    log_total_Bx1 = logits_BxV.logsumexp(dim=-1, keepdim=True)
    columns = [
        tokens_B[:, None],
        logits_BxV.gather(1, tokens_B[:, None]) - log_total_Bx1,
        logits_BxV.amax(dim=-1, keepdim=True),
    ]
    if settings.alternatives:
        values_BxK, numbers_BxK = logits_BxV.topk(min(settings.alternatives, logits_BxV.size(-1)), dim=-1)
        columns += [numbers_BxK, values_BxK - log_total_Bx1]
    # fp64 represents every token exactly.
    return torch.cat([column.double() for column in columns], dim=1).tolist()


def _require_finite(rows: Sequence[Sequence[float]], writers: Sequence[_Writer]) -> None:
    for row, writer in zip(rows, writers, strict=True):
        if not math.isfinite(row[2]):
            raise DivergedError(
                "the logits of the model are not finite",
                where=f"token {len(writer.text) + 1} of the text",
                hint="use another checkpoint: `nanolm checkpoints RUN` lists them",
            )


def _seen(writers: Sequence[_Writer], logits_BxV: torch.Tensor) -> torch.Tensor:
    """Return whether each text has each token."""
    seen_BxV = torch.zeros(logits_BxV.shape, dtype=torch.bool, device=logits_BxV.device)
    for row_V, writer in zip(seen_BxV, writers, strict=True):
        row_V[torch.tensor(writer.text, device=row_V.device)] = True
    return seen_BxV
