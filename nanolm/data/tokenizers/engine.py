"""Run a foreign tokenizer.json in a separate process, with limits on time, memory and the size of the result."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from nanolm.errors import TokenizerError
from nanolm.json_text import dump_json

# Limits far above what tokenizers need. Processor time: for every request, and for a megabyte of its content.
_SECONDS, _SECONDS_PER_MB = 2.5, 20.0
# Memory in bytes: of the process with its threads, and for a byte of tokenizer.json, of text and of ids.
_MEMORY = 500_000_000 + 8_000_000 * (os.cpu_count() or 1)
_MEMORY_PER_BYTE = {"load": 50, "encode": 500, "decode": 1000}
# Tokens for a byte of text, and bytes of text for a token.
_EXPANSION = {"encode": 16, "decode": 10_000}
# Seconds for a second of processor time: the machine may be busy, or nanolm may be suspended for a while.
_WAIT = 200

_ACTIONS = {"load": "be loaded", "encode": "encode the text", "decode": "decode the tokens"}
_HINT = "use another tokenizer.json, from a source that you trust"


class UnsafeTokenizerError(TokenizerError):
    """The library panics, crashes, or exceeds a limit."""


class Engine:
    """A tokenizer.json that runs in another process, which starts now and ends with this object.

    Args:
        state: the content, with known component types (`check_components`).

    Raises:
        TokenizerError: the library refuses it, or crashes while it reads it.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("engine_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._stop = weakref.finalize(self, _stop, self._process)
        # Ids do not depend on the other parts.
        content = dump_json(state | {"post_processor": None, "truncation": None, "padding": None}).encode()
        self._loaded = 0
        self._ask("load", content)
        self._loaded = _MEMORY_PER_BYTE["load"] * len(content)

    def encode(self, batch: list[str]) -> np.ndarray:
        """Convert texts to ids, one after the other.

        Raises:
            TokenizerError: the library cannot encode the text, crashes, or exceeds a limit.
        """
        content = "".join(batch).encode()
        ends = np.cumsum([len(text) for text in batch]).tolist()
        ids = np.frombuffer(self._ask("encode", content, ends=ends), dtype=np.uint32)
        if len(ids) > _EXPANSION["encode"] * (len(content) + 100 * len(batch)):
            raise UnsafeTokenizerError(
                f"the tokenizer makes {len(ids):,} tokens of a text of {len(content):,} bytes", hint=_HINT
            )
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """Convert ids to text.

        Raises:
            TokenizerError: the library crashes, or exceeds a limit.
        """
        body = self._ask("decode", ids.astype(np.uint32).tobytes())
        if len(body) > _EXPANSION["decode"] * (len(ids) + 100):
            raise UnsafeTokenizerError(
                f"the tokenizer makes a text of {len(body):,} bytes of {len(ids):,} tokens", hint=_HINT
            )
        return body.decode("utf-8", errors="replace")

    def _ask(self, action: str, content: bytes, **more: Any) -> bytes:
        """Send a request and return the body of the answer."""
        seconds = _SECONDS + _SECONDS_PER_MB * len(content) / 1e6
        memory = _MEMORY + self._loaded + _MEMORY_PER_BYTE[action] * len(content)
        request = {"do": action, "bytes": len(content), "seconds": seconds, "memory": memory, **more}
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        timer = threading.Timer(_WAIT * seconds, self._process.kill)
        timer.start()
        try:
            requests.write(dump_json(request).encode() + b"\n" + content)
            requests.flush()
            answer = json.loads(answers.readline())
            body = answers.read(answer["bytes"])
            if len(body) < answer["bytes"]:
                raise EOFError
        except (OSError, ValueError, EOFError) as error:
            self._stop()
            is_slow = os.name == "posix" and self._process.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
            reason = (
                f"{seconds:.0f} s of processor time" if is_slow else f"{memory / 1e6:,.0f} MB of memory, or crashes"
            )
            raise UnsafeTokenizerError(
                f"the tokenizer cannot {_ACTIONS[action]}: it needs more than {reason}", hint=_HINT
            ) from error
        except BaseException:
            # An interrupted request would be answered in place of the next one.
            self._process.kill()
            raise
        finally:
            timer.cancel()
        if answer.get("panics"):
            self._stop()
            raise UnsafeTokenizerError(
                f"the tokenizer cannot {_ACTIONS[action]}: it panics: {answer['error']}", hint=_HINT
            )
        if "error" in answer:
            raise TokenizerError(
                f"the tokenizer cannot {_ACTIONS[action]}: {answer['error']}",
                hint="it has no token for something in the text, and no unknown token" if action == "encode" else "",
            )
        return body


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process, which is killed if it does not exit by itself."""
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
