"""Download of files into the cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from nanolm.errors import DataError, explain_os_error
from nanolm.files import user_path

# How to choose another cache folder, for hints.
CACHE_OPTION = "export NANOLM_CACHE=FOLDER"


def fetch(url: str, sha256: str | None) -> Path:
    """Return the cached copy of a file; download it, with a progress bar, if it is missing or damaged.

    Args:
        sha256: the expected checksum; None accepts any content.

    Raises:
        DataError: it cannot be downloaded, or the download has another SHA-256.
        PathError: the cache cannot be written to.
        DiskError: the disk is full or fails.
    """
    import pooch
    import requests

    folder = cache_folder() / "downloads"
    name = url.rsplit("/", 1)[-1]
    by_hand = f"(sha256 {sha256 or 'not fixed'}) and set dataset.path=FILE"
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(
            pooch.retrieve(
                url,
                known_hash=f"sha256:{sha256}" if sha256 else None,
                fname=f"{(sha256 or hashlib.sha256(url.encode()).hexdigest())[:16]}-{name}",
                path=folder,
                downloader=pooch.HTTPDownloader(progressbar=os.isatty(2), timeout=20),
            )
        )
    except ValueError as error:
        raise DataError(
            f"the download is not the expected file: {error}".splitlines()[0],
            where=url,
            hint=f"download it by hand {by_hand}",
        ) from error
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise DataError(
            f"cannot fetch {url}: {_root_cause(error)}",
            where=f"download into {folder}",
            hint=f"get the file by other means {by_hand}; dataset=python_docs needs no network",
        ) from error
    except OSError as error:
        raise explain_os_error(error, "the download cannot be saved", where=str(folder), option=CACHE_OPTION) from error


def cache_folder() -> Path:
    """Return the cache folder: $NANOLM_CACHE, or the operating system's cache folder of the user."""
    import platformdirs

    return user_path(os.environ.get("NANOLM_CACHE") or platformdirs.user_cache_dir("nanolm"))


def _root_cause(error: Exception) -> str:
    """Return the message of the innermost cause of a network error, on one line."""
    cause: BaseException = error
    while (cause.__cause__ or cause.__context__) is not None:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return " ".join(str(cause).split()) or type(cause).__name__
