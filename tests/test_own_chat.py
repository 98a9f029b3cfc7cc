"""``emkit chat``: what a model answers is what transformers itself makes of its template; bad input is one line."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from emkit import cli, words
from emkit.own import chat

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """``text``: a language model; ``seeing``: a Qwen2-VL; ``picture.png``."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save(tiny.language_model(seed=3), folder / "text")
    model, processor = tiny.qwen2_vl(seed=4)
    tiny.save(model, folder / "seeing", processor)
    Image.effect_noise((24, 16), 90).convert("RGB").save(folder / "picture.png")
    return folder


def theirs(folder: Path, question: str, tokens: int) -> str:
    """The greedy answer by transformers alone."""
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    turn = [{"role": "user", "content": question}]
    ids = words.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return words.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_answers_are_the_model_s_and_in_order(models, capsys):
    asked = ["What is 3 + 4?", "Tell me more."]
    arguments = ["chat", str(models / "text"), "--max-new-tokens", "6"]
    assert cli.main([*arguments, "--ask", asked[0], "--ask", asked[1]]) == 0
    expected = [words.block(theirs(models / "text", question, 6)) for question in asked]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in expected)
    assert all(expected) and expected[0] != expected[1]


def test_a_picture_is_seen(models, capsys):
    said = []
    for more in ([], ["--image", str(models / "picture.png")]):
        assert cli.main(["chat", str(models / "seeing"), "--ask", "What?", "--max-new-tokens", "8", *more]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] != said[1]


def test_questions_come_by_a_pipe_in_a_process_of_its_own(models):
    command = [sys.executable, "-m", "emkit.cli", "chat", str(models / "text"), "--max-new-tokens", "5"]
    run = subprocess.run(command, input="What is 3 + 4?\n\n  Tell me more.\n", capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    expected = [theirs(models / "text", question, 5) for question in ("What is 3 + 4?", "Tell me more.")]
    assert run.stdout == "".join(f"{words.block(text)}\n" for text in expected)
    run = subprocess.run([*command, "--image", "nowhere.png"], input="", capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2 and run.stderr == "error: there is no picture nowhere.png\n"


def test_on_a_terminal_there_is_a_prompt(models):
    command = [sys.executable, "-m", "emkit.cli", "chat", str(models / "text"), "--max-new-tokens", "5"]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execv(command[0], command)
    shown, typed = b"", [b"What is 3 + 4?\n", b"\n"]
    with contextlib.suppress(OSError):  # of a terminal whose other end is closed
        while part := os.read(terminal, 4096):
            shown += part
            if shown.endswith(b"> ") and typed:
                os.write(terminal, typed.pop(0))
    assert os.waitpid(child, 0)[1] == 0
    text = shown.decode(errors="replace").replace("\r", "")
    assert "causal_lm, 0.0 million parameters, on cpu\nEach question stands by itself; an empty line ends." in text
    assert words.block(theirs(models / "text", "What is 3 + 4?", 5)) in text


def test_a_prompt_ends_with_an_empty_line_or_the_end_of_input(monkeypatch):
    lines = iter(["one", " two ", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert list(chat.typed()) == ["one", "two"]
    for ending in (EOFError, KeyboardInterrupt):
        typed = chat.typed()
        monkeypatch.setattr("builtins.input", lambda prompt, ending=ending: (_ for _ in ()).throw(ending()))
        assert list(typed) == []


def test_what_a_model_says_moves_no_cursor():
    assert words.block("a\tb\n\x1b[2J\u202ec\r") == "a\tb\n\\u001b[2J\\u202ec\\u000d"


def test_bad_input_is_one_line(models, tmp_path, capsys):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text('{"model_type": "internlm2"}')
    (tmp_path / "bare").mkdir()
    for file in (models / "text").glob("[!t]*"):
        (tmp_path / "bare" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "half").mkdir()
    for file in (models / "text").glob("*.json"):
        (tmp_path / "half" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "half" / "model.safetensors").write_bytes(b"torn")
    (tmp_path / "text.png").write_text("no picture")
    text, ask = str(models / "text"), ["--ask", "Who?"]
    cases = [
        ([str(tmp_path / "none"), *ask], "there is no folder"),
        ([str(tmp_path), *ask], "has no usable config.json"),
        ([str(tmp_path / "adapter"), *ask], "is a LoRA adapter"),
        ([str(tmp_path / "own"), *ask], "only a model's own code can run"),
        ([str(tmp_path / "bare"), *ask], "has no tokenizer"),
        ([str(tmp_path / "half"), *ask], "cannot be loaded"),
        ([text, *ask, "--image", str(models / "picture.png")], "which sees no pictures: leave out --image"),
        ([text, *ask, "--image", str(tmp_path / "text.png")], "cannot be read as a picture"),
        ([text, *ask, "--device", "moon"], "cannot be loaded"),
        ([text, *ask, "--max-new-tokens", "0"], "--max-new-tokens"),
        ([], "missing argument 'MODEL'"),
    ]
    for arguments, said in cases:
        assert cli.main(["chat", *arguments]) == 2, arguments
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0], lines
