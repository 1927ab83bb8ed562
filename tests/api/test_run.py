"""Runs as Python objects."""

from __future__ import annotations

import dataclasses
import html
import importlib.util
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import nanolm
from nanolm.api.card import card, curve_svg
from nanolm.api.run import DTYPES, GenerationOptions
from nanolm.errors import RunError, SettingsError, TokenizerError
from nanolm.inference.settings import GenerationSettings
from nanolm.inference.weight_formats import WeightFormat
from nanolm.runs.directory import RunDirectory


def test_load_reads_settings_summary_and_metrics(gpt: nanolm.Run) -> None:
    run = nanolm.load(gpt)
    assert run.config.model.name == "transformer"
    assert run.summary.step == 6
    table = run.metrics()
    assert list(table["step"]) == [1, 2, 3, 3, 4, 5, 6, 6]
    assert any(name.startswith("weight_norms.") for name in table.columns)
    assert set(run.metrics("val")["split"]) == {"val"}


def test_metrics_are_dicts_without_pandas(gpt: nanolm.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rows = gpt.metrics("val")
    assert [row["step"] for row in rows] == [3, 6]
    assert "lr" not in rows[0]


def test_model_is_in_evaluation_mode_on_the_tokens_of_the_tokenizer(gpt: nanolm.Run) -> None:
    assert not gpt.model.training
    ids = gpt.tokenizer.encode("3 and")
    logits_1xTxV = gpt.model(torch.tensor(ids.astype("int64"))[None])
    assert logits_1xTxV.shape == (1, 5, gpt.tokenizer.vocab_size)
    assert not logits_1xTxV.requires_grad


def test_load_chooses_a_checkpoint(gpt: nanolm.Run) -> None:
    assert nanolm.load(gpt.path, checkpoint=3).step == 3
    assert nanolm.load(gpt.path, checkpoint="last").step == 6


def test_load_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        nanolm.load(tmp_path)


def test_load_refuses_unknown_weights_and_dtypes(gpt: nanolm.Run) -> None:
    with pytest.raises(SettingsError, match=r"no weights 'best'(.|\n)*no dtype 'int4'"):
        nanolm.load(gpt, weights="best", dtype="int4")
    assert set(DTYPES) == {each.value for each in WeightFormat}
    assert nanolm.load(gpt, dtype="bfloat16").generate("3 and", max_new_tokens=2)


def test_generate_and_stream_write_the_same_text(gpt: nanolm.Run) -> None:
    whole = gpt.generate("3 and", max_new_tokens=12, seed=3)
    pieces = list(gpt.stream("3 and", max_new_tokens=12, seed=3))
    assert whole == "3 and" + "".join(pieces)
    assert len(pieces) > 1
    assert gpt.generate(["3 and", "is"], max_new_tokens=12, seed=3)[0] == whole
    assert gpt.generate("3 and", samples=2, max_new_tokens=12, seed=3)[0] == whole


def test_generate_refuses_wrong_settings(gpt: nanolm.Run) -> None:
    with pytest.raises(SettingsError, match="top-k"):
        gpt.generate("3", top_k=0)
    with pytest.raises(SettingsError, match="no setting 'topk'") as error:
        gpt.generate("3", topk=2)  # type: ignore[call-overload]
    assert "did you mean top_k?" in str(error.value)
    with pytest.raises(TokenizerError):
        gpt.generate("ß")


def test_generation_options_are_those_of_the_engine() -> None:
    fields = {field.name for field in dataclasses.fields(GenerationSettings)}
    assert set(GenerationOptions.__annotations__) == fields - {"alternatives"}


def test_evaluate_gives_the_loss_of_the_best_checkpoint(gpt: nanolm.Run) -> None:
    found = gpt.evaluate()
    assert found["loss"] == pytest.approx(gpt.summary.best_val_loss, abs=1e-5)


def test_export_writes_a_folder(gpt: nanolm.Run, tmp_path: Path) -> None:
    gpt.export(tmp_path / "exported", format="safetensors")
    assert any((tmp_path / "exported").glob("*.safetensors"))


def test_repr_names_the_result(gpt: nanolm.Run) -> None:
    assert re.fullmatch(
        r"Run\('.*/gpt': gpt small \([\d.]+k parameters\) on text, completed at step 6, val loss [\d.]+, .* per byte\)",
        repr(gpt).replace("gpt tiny", "gpt small"),
    )


def test_card_is_well_formed_and_escapes_all_text(gpt: nanolm.Run, tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<script>&"
    folder.mkdir()
    shutil.copytree(gpt.path, folder / "run")
    shown = nanolm.load(folder / "run")._repr_html_()
    tree = ElementTree.fromstring(shown)
    assert "<script" not in shown
    assert html.escape("<script>") in shown
    assert [element.tag for element in tree.iter()].count("polyline") == 2
    labels = [element.text for element in tree.iter("text")]
    assert "train" in labels
    assert "val" in labels


def test_card_of_a_damaged_run_shows_what_is_damaged(gpt: nanolm.Run, tmp_path: Path) -> None:
    shutil.copytree(gpt.path, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("<b>\n")
    (tmp_path / "run" / "summary.json").write_text("[")
    run = nanolm.load(tmp_path / "run")
    assert "summary.json" in repr(run)
    assert "<b>" not in run._repr_html_()
    ElementTree.fromstring(run._repr_html_())


def test_curve_of_one_point_is_not_drawn() -> None:
    assert curve_svg([(1.0, 2.0)], []) == ""
    assert "polyline" in curve_svg([(1.0, 2.0), (2.0, 2.0)], [])


def test_card_of_a_run_without_metrics_has_no_curve(tmp_path: Path) -> None:
    assert "<svg" not in card(RunDirectory(tmp_path), "nothing yet")
