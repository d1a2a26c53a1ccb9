"""The folder of a run: locked while a process works in it; an old run goes only when the new one stands."""

import os
import subprocess
import sys

import pytest

from bilevel import files
from bilevel.files import FileInUseError
from istd.cli import main
from istd.files import read_json, write_json
from istd.runs.folder import FILES
from istd.runs.holding import HeldFolder, check_folder


@pytest.fixture
def old(tmp_path):
    for name in FILES:
        (tmp_path / name).write_text(f"old {name}")
    return tmp_path


def contents(folder):
    return {name: (folder / name).read_text() for name in FILES if (folder / name).exists()}


def test_an_overwritten_run_returns_if_the_new_one_fails_before_an_epoch(old):
    before = contents(old)

    def fail():
        with HeldFolder(old, overwrite=True):
            assert contents(old) == {}
            (old / "config.json").write_text("new")
            raise ValueError("typo")

    with pytest.raises(ValueError, match="typo"):
        fail()
    assert contents(old) == before


@pytest.mark.slow
def test_an_overwritten_run_returns_if_the_new_one_was_killed_before_an_epoch(old):
    before = contents(old)
    code = f"import os; from pathlib import Path; from istd.runs.holding import HeldFolder; p = Path({str(old)!r})\n"
    code += "with HeldFolder(p, overwrite=True): (p / 'config.json').write_text('new'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert contents(old) == {"config.json": "new"}
    with pytest.raises(FileExistsError, match="--resume"):
        check_folder(old, resume=False, overwrite=False)
    with HeldFolder(old, resume=True):  # the new one left no checkpoint: what can be resumed is the old one
        assert contents(old) == before


def test_an_overwritten_run_goes_when_the_new_one_has_finished_an_epoch(old):
    def stop():
        with HeldFolder(old, overwrite=True) as folder:
            (old / "checkpoint.pt").write_text("new")
            folder.on_inner_step(None, 1, 5)
            assert (old / ".replaced").exists()
            folder.on_inner_step(None, 2, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert contents(old) == {"checkpoint.pt": "new"}
    assert not (old / ".replaced").exists()


@pytest.mark.slow
def test_two_processes_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_WAIT", 0.0)
    code = (
        f"from pathlib import Path; from istd.runs.holding import HeldFolder; f = HeldFolder(Path({str(tmp_path)!r}))\n"
    )
    code += "with f: print('in', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(FileInUseError, match="at work on"), HeldFolder(tmp_path):
            pass
        other.kill()  # the lock dies with its process
    with HeldFolder(tmp_path):
        pass


def test_what_does_not_fit_a_folder_is_refused_before_anything_is_done(old, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_folder(tmp_path / "file", False, False)
    assert main(["train", "--resume", "--out", str(tmp_path / "empty")]) == 2
    assert "holds no run to resume; drop --resume" in capsys.readouterr().err
    before = contents(old)
    assert main(["train", "--overwrite", "--data", str(tmp_path / "TYPO"), "--out", str(old)]) == 2
    assert "not a folder" in capsys.readouterr().err
    assert contents(old) == before
    assert main(["train", "--overwrite", "--vfm.weights", "nowhere.pth", "--out", str(old), "--threads", "1"]) == 2
    assert "not a file" in capsys.readouterr().err
    assert contents(old) == before


def test_json_is_read_back_or_named(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [1.5]})
    assert read_json(tmp_path / "a.json") == {"x": None, "y": [1.5]}
    for text in ('{"x": 1', "[]", ""):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=r"a\.json"):
            read_json(tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["a.json"]
