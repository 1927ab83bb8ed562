"""Settings of text generation, with their checks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from nanolm import option_types
from nanolm.errors import SettingsError, raise_all

# Alternatives that a token can carry.
MAX_ALTERNATIVES = 100


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How to generate text. The defaults sample from the distribution of the model, unchanged.

    The logits are processed in this order: repetition_penalty, temperature, top_k, top_p, min_p
    (nanolm.inference.sampling).

    Attributes:
        max_new_tokens: number of tokens to generate, unless generation stops before.
        temperature: divisor of the logits; 0 selects the most likely token.
        top_k: number of most likely tokens to sample from; None samples from all tokens.
        top_p: sample from the most likely tokens whose probabilities sum to top_p (Holtzman et al. 2020); None or 1
            samples from all tokens.
        min_p: sample from the tokens that are at least min_p times as likely as the most likely one (Nguyen et al.
            2024); None or 0 samples from all tokens.
        repetition_penalty: divisor of the positive logits, and factor of the negative ones, of all tokens that the
            prompt or the generated text already has (Keskar et al. 2019, section 4.1); 1 has no effect.
        seed: seed of the first sample. Sample i has the seed `seed` + i, and is the text that this seed gives alone.
        stop: texts at which generation stops; they are not part of the result.
        ignore_eos: whether to continue after an end-of-text token such as <|endoftext|>.
        stride: tokens dropped at once when the context is full; None: a quarter of the context.
        use_cache: False recomputes the whole context for every token.
        alternatives: number of most likely tokens to report with every generated token.
    """

    max_new_tokens: int = 200
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stride: int | None = None
    use_cache: bool = True
    alternatives: int = 0

    def check(self, context_length: int) -> None:
        """Check the settings for a model.

        Raises:
            SettingsError: with every setting that is out of range.
        """
        raise_all(list(self.problems(context_length)))

    def problems(self, context_length: int) -> Iterator[SettingsError]:
        """Yield an error for every setting that is out of range."""
        finite_temperature = 0 <= self.temperature < math.inf
        in_context = f"from 1 to the context length, {context_length}"
        share = "above 0, at most 1 (1 samples from all tokens)"
        for option, value, is_valid, hint in (
            ("--max-new-tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
            ("--temperature", self.temperature, finite_temperature, "0 (greedy decoding) or more"),
            ("--top-k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or more"),
            ("--top-p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, share),
            ("--min-p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1, "from 0 (all tokens) to 1"),
            (
                "--repetition-penalty",
                self.repetition_penalty,
                0 < self.repetition_penalty < math.inf,
                "above 0; 1 has no effect, more than 1 discourages repetition",
            ),
            ("--seed", self.seed, 0 <= self.seed <= option_types.LARGEST, option_types.SEED.hint),
            ("--stop", list(self.stop), all(self.stop), "texts of at least one character"),
            ("--stride", self.stride, self.stride is None or 1 <= self.stride <= context_length, in_context),
            (
                "--alternatives",
                self.alternatives,
                0 <= self.alternatives <= MAX_ALTERNATIVES,
                f"from 0 to {MAX_ALTERNATIVES}",
            ),
        ):
            if not is_valid:
                yield SettingsError(f"{option} is {value}", where=option, hint=hint)

    def stride_in(self, context_length: int) -> int:
        """Return the number of tokens that are dropped when the context is full."""
        return max(1, context_length // 4) if self.stride is None else self.stride
