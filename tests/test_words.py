"""What others named a thing cannot forge a line, move the cursor or fill the screen, and any terminal shows it."""

import os
import shutil
import subprocess
import sys

import own_models as own
import pytest
import torch

from emkit import cli, words

FORGED = "everything fits; nothing was merged (--dry-run)"


def test_a_name_cannot_forge_a_line(tmp_path, capsys):
    models = own.write_models(tmp_path / "models")
    name = f"x\n{FORGED}\x1b[2K\r\u202e{'y' * 100_000}"
    own.rewrite(models / "math", {name: torch.zeros(3)})
    assert cli.main([*own.flags(models, tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert FORGED not in said.err.splitlines() and said.out == FORGED + "\n"
    assert rf"x\n{FORGED}\u001b[2K\u000d\u202eyyy" in said.err
    assert max(map(len, said.err.splitlines())) <= words.LONGEST
    own.rewrite(models / "math", {"model.layers.0.mlp.down_proj.weight": None, name: torch.zeros(3)})
    assert cli.main([*own.flags(models, tmp_path / "out"), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) <= words.LONGEST + 1 and said[:-1].isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with é, 字 and 🙂", "plain, with é, 字 and 🙂"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b]0;title\x07", "\\u001b]0;title\\u0007"),
        ("\x9b2J", "\\u009b2J"),  # a control sequence's beginning in one character
        ("\u2028\u2066\udcff\U000e0001", "\\u2028\\u2066\\udcff\\U000e0001"),
    ],
)
def test_a_line_is_one_line(text, shown):
    assert words.line(text) == shown
    assert words.line(text * 5000).isprintable() and len(words.line(text * 5000)) <= words.LONGEST


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16"])
def test_any_terminal_shows_it(tmp_path, encoding):
    """Letters that the terminal lacks, and a merge to its end; and a name that is no text at all, in one line."""
    models = own.write_models(tmp_path / "café 字")

    def run(*given):
        command = [sys.executable, "-m", "emkit.cli", "merge", *given]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=False
        )
        return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)

    status, out, error = run(*own.flags(models, models / "out", "weight_average")[1:])
    assert status == 0 and "Traceback" not in error, error
    shown = {"ascii": "caf\\u00e9 \\u5b57", "latin-1": "café \\u5b57"}.get(encoding, "café 字")
    assert out.replace("\\xe9", "\\u00e9").startswith(f"{tmp_path}/{shown}/out: ")
    assert "café 字" in (models / "out" / "README.md").read_text(encoding="utf-8")
    odd = os.fsencode(tmp_path) + b"/caf\xe9"  # Latin-1, where names are UTF-8
    shutil.copytree(models, os.fsdecode(odd))
    status, out, error = run(b"--base", odd + b"/base", *own.flags(models, tmp_path / "o", "weight_average")[3:])
    assert status == 2 and error.count("error: ") == 1 and "Traceback" not in error
    assert "caf\\udce9/base" in error and "is not UTF-8" in error
