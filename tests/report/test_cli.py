"""``flower-ext report``: where the page goes, and what is said of broken folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from flower_ext.cli import main


def test_the_page_goes_into_the_folder_or_where_it_is_told(
    coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(coded)]) == 0
    assert capsys.readouterr().out == f"Wrote {coded / 'report.html'}\n"
    elsewhere = tmp_path / "page.html"
    assert main(["report", str(coded), "--output", str(elsewhere)]) == 0
    assert elsewhere.read_bytes() == (coded / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "There are no results in"),
        ("", "There are no results in"),  # as an app leaves it until its run is over
        ('{"format": 1, "ki', "no JSON that can be read"),
        ("[]", "has no format number"),
        ('{"settings": {}, "rounds": []}', "has no format number"),
        ('{"format": 2, "kind": "two-stage-coded"}', "format 2, and this flower-ext"),
        ('{"format": 1, "kind": "cooking"}', "has kind 'cooking'"),
        ('{"format": 1, "kind": "two-stage-coded"}', "lacks rounds and settings"),
        (
            '{"format": 1, "kind": "two-stage-coded", "settings": {}, "rounds": []}',
            "not what an app writes (KeyError: ",
        ),
    ],
)
def test_broken_folders_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    assert main(["report", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("flower-ext report: ")
    assert said in captured.err
    assert not captured.out
    assert not (tmp_path / "report.html").exists()


def test_no_folder_and_no_place_for_the_page(
    coded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(coded / "nowhere")]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert main(["report", str(coded), "--output", str(coded / "no" / "page")]) == 1
    assert "Name another file" in capsys.readouterr().err
