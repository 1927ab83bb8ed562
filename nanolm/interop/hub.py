"""Download a model from the Hugging Face hub into its cache."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm.data.tokenizers.bytepairs import ENCODER_NAMES, MERGES_NAMES
from nanolm.errors import NanolmError, RunError, explain_os_error, install_hint
from nanolm.interop.sources import CONFIG, SourceFolder
from nanolm.interop.tokenizer_files import ADDED, SENTENCEPIECE, TOKENIZER
from nanolm.interop.weights import FORMATS, index_of, read_shards

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

# The files of a tokenizer, of which those that the model has are downloaded.
_TOKENIZER_FILES = (TOKENIZER, ADDED, *ENCODER_NAMES, *MERGES_NAMES)

# Seconds to wait for the hub's description of a model; huggingface_hub's variable for the same wait changes it.
TIMEOUT = 5
TIMEOUT_VARIABLE = "HF_HUB_ETAG_TIMEOUT"

_BY_HAND = "or get the files by other means, and name their folder: nanolm import FOLDER --to RUN"


def download(name: str, revision: str | None, report: Callable[[str], None]) -> SourceFolder:
    """Download config.json, the weights and the tokenizer of a model; what is in the cache is not downloaded again.

    An interrupted download continues. Without a network, the cache is used as it is.

    Args:
        name: of the model on the hub.
        revision: a branch, tag or commit; None is the main branch.
        report: receives remarks.

    Raises:
        RunError: the package huggingface_hub is missing, the model or its revision does not exist, or a file cannot be
            downloaded.
        PathError, DiskError: the cache cannot be written.
    """
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars
    except ModuleNotFoundError as error:
        raise RunError(
            f"there is no folder {name}, and a name on the hub needs the package huggingface_hub",
            where="SOURCE",
            hint=f"{install_hint('hub')}; {_BY_HAND}",
        ) from error
    if not os.isatty(2):
        disable_progress_bars()
    # Asked first, since it fails soon without a network; a download is tried for half a minute.
    try:
        with _explained(name, revision):
            about = _describe(name, revision)
    except _UnreachableError:
        cached = huggingface_hub.try_to_load_from_cache(name, CONFIG, revision=revision or "main")
        if not isinstance(cached, str):
            raise
        source = _snapshot(name, cached)
        report(f"the hub cannot be reached: {name} is read from the cache, at commit {source.path.name[:8]}")
        return source
    with _explained(name, revision):
        # By the name of the branch, which the cache remembers.
        source = _snapshot(name, huggingface_hub.hf_hub_download(name, CONFIG, revision=revision or "main"))
        # The other files are of the same commit, also if the branch has moved in the meantime.
        commit = source.path.name
        if commit != about.sha:
            about = _describe(name, commit)
    files = about.siblings or []
    names = {file.rfilename for file in files}
    source.known_sha256.update({file.rfilename: file.lfs.sha256 for file in files if file.lfs})
    with _explained(name, revision):
        for wanted in _wanted(names):
            huggingface_hub.hf_hub_download(name, wanted, revision=commit)
            # Only the index tells the names of the shards.
            for shard in read_shards(source, wanted) if wanted in map(index_of, FORMATS) else []:
                huggingface_hub.hf_hub_download(name, shard, revision=commit)
    return source


def _describe(name: str, revision: str | None) -> ModelInfo:
    """Return the hub's description of a model, which is asked for once.

    Raises:
        Exception: of huggingface_hub or of the network, such as a TimeoutError.
    """
    from huggingface_hub import HfApi, constants

    seconds = constants.HF_HUB_ETAG_TIMEOUT if TIMEOUT_VARIABLE in os.environ else TIMEOUT
    answers: queue.Queue[ModelInfo | Exception] = queue.Queue()

    def ask() -> None:
        try:
            # Its own limit only ends the thread.
            answers.put(HfApi().model_info(name, revision=revision, files_metadata=True, timeout=2 * seconds))
        except Exception as error:
            answers.put(error)

    # A thread, since the limit of a connection holds for each address of the hub, and not for looking them up.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        answer = TimeoutError(f"no answer within {seconds} s; {TIMEOUT_VARIABLE}=60 waits longer")
    if isinstance(answer, Exception):
        raise answer
    return answer


def _snapshot(name: str, file: str) -> SourceFolder:
    """Return the folder of a commit in the cache, in which files are links to those of the repository."""
    folder = Path(file).parent
    return SourceFolder(folder, folder.parents[1], name, folder.name)


def _wanted(names: set[str]) -> list[str]:
    """Return the files to download: of the weights in the best format, and of the tokenizer."""
    weights = (option for single in FORMATS for option in (single, index_of(single)))
    tokenizer = [name for name in _TOKENIZER_FILES if name in names]
    if not tokenizer and SENTENCEPIECE in names:
        tokenizer = [SENTENCEPIECE]
    return [*tokenizer, *[name for name in weights if name in names][:1]]


class _UnreachableError(RunError):
    """The hub cannot be reached, and what is wanted is not in the cache."""


@contextlib.contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """Translate the errors of huggingface_hub."""
    from huggingface_hub import errors

    where = f"{name}, revision {revision or 'main'}"
    page = f"https://huggingface.co/{name}"
    try:
        yield
    except NanolmError:
        raise
    except errors.GatedRepoError as error:
        hint = f"accept its conditions on {page}, then set HF_TOKEN to a token of yours"
        raise RunError(f"the hub gives {name} to some users only", where=where, hint=hint) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise RunError(
            f"there is neither a folder {name} here nor a model {name} on the hub",
            where="SOURCE",
            hint="check the name; a private model needs HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        hint = f"a branch, a tag or a commit of {page}/commits/main"
        raise RunError(f"the model {name} has no revision {revision}", where="--revision", hint=hint) from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(name, where, error) from error
    except errors.EntryNotFoundError as error:
        raise RunError(f"the model {name} has no {CONFIG} on the hub", where=where, hint="use another model") from error
    except (errors.HTTPError, ConnectionError, TimeoutError) as error:
        raise _unreachable(name, where, error) from error
    except OSError as error:
        raise explain_os_error(
            error, "the download cannot be saved", where="the cache of the hub", option="export HF_HOME=FOLDER"
        ) from error


def _unreachable(name: str, where: str, error: BaseException) -> _UnreachableError:
    while (error.__cause__ or error.__context__) is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    reason = " ".join(str(error).split()) or type(error).__name__
    return _UnreachableError(
        f"there is no folder {name} here, and the hub cannot be reached: {reason}",
        where=where,
        hint=f"check the network and repeat the command, which continues; {_BY_HAND}",
    )
