import hashlib
from pathlib import Path

from nanolm.data.tokens import keys


def test_file_hash_covers_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "vocabulary").write_text("a")
    assert keys.file_hash(str(tmp_path / "vocabulary")) == hashlib.sha256(b"a").hexdigest()
    assert keys.file_hash(str(tmp_path)) is not None
    assert keys.file_hash("x" * 5000) is None
    assert keys.file_hash(5) is None
