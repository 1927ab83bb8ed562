"""The process in which a foreign tokenizer.json runs, started by nanolm.data.tokenizers.engine.

The library of Hugging Face panics, aborts, or needs unbounded time or memory for some files. Every request and every
answer is a line of JSON followed by as many bytes as it says. This file imports nothing of nanolm, so that it starts
quickly.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import json
import os
import signal
import sys
from typing import Any, BinaryIO


def _set_limits(seconds: float, n_bytes: int) -> None:
    """Limit the processor time of the next request and the memory; the process is killed if it exceeds them."""
    # Windows has none; the parent limits the time there.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        used = usage.ru_utime + usage.ru_stime
        for what, limit in ((resource.RLIMIT_CPU, int(used + seconds) + 1), (resource.RLIMIT_DATA, n_bytes)):
            _, hard = resource.getrlimit(what)
            resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _load(content: bytes) -> Any:
    from tokenizers import Tokenizer

    engine = Tokenizer.from_buffer(content)
    engine.no_truncation()
    engine.no_padding()
    # The name of a special token in a text is ordinary text.
    engine.encode_special_tokens = True
    return engine


def _answer(engine: Any, request: dict[str, Any], content: bytes) -> bytes:
    if request["do"] == "decode":
        ids = array.array("I", content).tolist()
        return engine.decode(ids, skip_special_tokens=False).encode("utf-8", "surrogatepass")
    text = content.decode("utf-8")
    ends = [0, *request["ends"]]
    batch = [text[start:end] for start, end in itertools.pairwise(ends)]
    encoded = engine.encode_batch_fast(batch, add_special_tokens=False)
    return b"".join(array.array("I", part.ids).tobytes() for part in encoded)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the parent closes the pipe or the library panics."""
    engine = None
    while line := requests.readline():
        request = json.loads(line)
        _set_limits(request["seconds"], request["memory"])
        content = requests.read(request["bytes"])
        answer: dict[str, Any] = {}
        body = b""
        try:
            if engine is None:
                engine = _load(content)
            else:
                body = _answer(engine, request, content)
        except BaseException as error:  # a panic of the library is no Exception
            answer = {"error": str(error)[:1000], "panics": not isinstance(error, Exception)}
        answers.write(json.dumps(answer | {"bytes": len(body)}).encode() + b"\n" + body)
        answers.flush()
        if answer.get("panics") or engine is None:
            # Exiting in order would run the destructors of what has panicked.
            os._exit(0)


if __name__ == "__main__":
    # The parent handles signals to the process group, and ends this process by closing the pipe.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    serve(sys.stdin.buffer, sys.stdout.buffer)
