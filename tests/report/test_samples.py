from pathlib import Path

from nanolm.report.samples import Sample, read
from nanolm.runs.directory import RunDirectory
from nanolm.runs.log import Log


def test_samples_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    own_heading = "\n--- step 7\nof its own making\n"
    written = [Sample(10, "To be\n\nor not"), Sample(20, ""), Sample(30, own_heading), Sample(40, "é")]
    log = Log(run, {})
    for sample in written:
        log.sample(sample.step, sample.text)
    log.close()
    assert read(run.samples) == written


def test_no_file_and_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "samples.txt"
    assert read(path) == []
    path.write_text("")
    assert read(path) == []
    path.write_bytes("--- step 5\nabc\n\n--- step 10\ncaf\u00e9".encode()[:-1])
    assert read(path) == [Sample(5, "abc"), Sample(10, "caf\ufffd")]
