import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nanolm.errors import DivergedError, Problems, SettingsError, explain_os_error, install_hint, nearest


def test_error_message_has_what_where_and_hint() -> None:
    assert str(SettingsError("it is blue", where="the sky", hint="paint it")).splitlines() == [
        "it is blue",
        "  where: the sky",
        "  hint:  paint it",
    ]


def test_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(Problems([DivergedError("a", where="b"), SettingsError("c")])))  # noqa: S301
    assert [type(problem) for problem in error.problems] == [DivergedError, SettingsError]
    assert str(error) == "a\n  where: b\nc"


def test_nearest_finds_a_key_without_its_group() -> None:
    assert nearest("lr", ["optimizer.lr", "logger", "trainer.clip_norm"]).startswith("did you mean optimizer.lr?")
    assert nearest("trainer.max_step", ["trainer.max_steps", "x"]).startswith("did you mean trainer.max_steps?")
    assert nearest("qqq", ["a", "b"]) == "one of: a, b"


def os_error_of(action: Callable[[], object]) -> OSError:
    with pytest.raises(OSError) as error:
        action()
    return error.value


def test_explain_os_error_adds_the_path_and_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for action, reason, hint in (
        (lambda: (tmp_path / ("a" * 300)).touch(), "File name too long", "shorter name"),
        (lambda: (tmp_path / "file" / "a").touch(), "Not a directory", "is a file, not a folder"),
        (lambda: (tmp_path / "file").mkdir(), "File exists", "move it away"),
        (lambda: tmp_path.read_bytes(), "Is a directory", "choose a file"),
    ):
        error = explain_os_error(os_error_of(action), "cannot write", option="-o FILE")
        assert error.found == f"cannot write: {reason}"
        assert str(tmp_path) in error.where
        assert hint in error.hint
        assert error.hint.endswith("; -o FILE chooses another")
        assert error.exit_status == 2
    full = os_error_of(lambda: Path("/dev/full").write_text("x"))
    assert explain_os_error(full, "cannot write").exit_status == 1, "the disk is full"


def test_explain_os_error_raises_errors_not_about_files() -> None:
    error = OSError("libcudart.so: cannot open shared object file")
    with pytest.raises(OSError) as raised:
        explain_os_error(error)
    assert raised.value is error


def test_explain_os_error_names_a_deleted_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir("gone")
    (tmp_path / "gone").rmdir()
    assert explain_os_error(os_error_of(Path.cwd)).found == "the current folder has been deleted"


def test_install_hint_lists_packages_of_the_index() -> None:
    assert re.fullmatch(r"pip install 'matplotlib>=[\d.]+' 'plotly>=[\d.]+'", install_hint("report"))
    assert install_hint("spacy").startswith("pip install 'spacy>=")


def test_no_text_installs_nanolm_from_the_index() -> None:
    root = Path(__file__).parent.parent
    files = [
        path
        for folder in ("nanolm", "configs", "docs", "hydra_plugins", "scripts")
        for path in (root / folder).rglob("*")
    ]
    texts = [path for path in (*files, root / "README.md") if path.suffix in (".py", ".md", ".yaml", ".js", ".html")]
    assert texts
    from_index = re.compile(r"pip install [^\n`]*\bnanolm\b|\bnanolm\[\w")
    found = {path.name: match[0] for path in texts if (match := from_index.search(path.read_text(encoding="utf-8")))}
    assert found == {}
