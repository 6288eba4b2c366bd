"""`metaalign skills` tells where the packaged skill file is, and copies it without overwriting."""

from pathlib import Path

import yaml

from metaalign_hf.cli import run


def test_the_skill_file_is_there_and_is_copied_once(tmp_path, capsys):
    assert run(["skills"]) == 0
    packaged = Path(capsys.readouterr().out.strip())
    text = packaged.read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["name"] == "metaalign" and 20 < len(head["description"]) < 1024
    assert run(["skills", "--write", str(tmp_path / "skills")]) == 0
    copy = tmp_path / "skills" / "metaalign" / "SKILL.md"
    assert copy.read_text() == text and str(copy) in capsys.readouterr().out
    copy.write_text("mine")
    assert run(["skills", "--write", str(tmp_path / "skills")]) == 2
    assert f"{copy} exists" in capsys.readouterr().err and copy.read_text() == "mine"
