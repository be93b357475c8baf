"""Any locale: what it cannot print is escaped, what it cannot name is refused, and names of files act on nothing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from hostile import complaints
from hostile.judge import acting
from unmemorize.cli import terminal
from unmemorize.cli.mistakes import require_text
from unmemorize.core.errors import UserError

TEXT = "café 火 🚀 \x1b[2J"
LOCALES = {
    "UTF-8": {"LC_ALL": "C.UTF-8"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Latin-1": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"},
}
NAMES = (b"a.png", b"caf\xe9.png", "caf\u00e9.png".encode(), "火.png".encode(), b"\x1b[2J.png", b"x\ny.png")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_encoding_holds_every_text(encoding, monkeypatch):
    """JSON reads back whole, and a line is a line, where the encoding has the characters and where it lacks them."""
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding))
    terminal.open_streams()
    terminal.print_json({"prompt": TEXT})
    terminal.say(TEXT)
    sys.stdout.flush()
    document, line = printed.getvalue().decode(encoding).splitlines()
    assert json.loads(document)["prompt"] == TEXT
    assert "caf" in line
    assert acting(line) == []


@pytest.mark.parametrize(
    ("word", "encoding"),
    [("caf\udce9", "utf-8"), ("a\udcc3\udca9", "ascii"), ("café", "iso8859-1"), ("\ud800", "utf-8")],
)
def test_what_a_locale_cannot_name_is_refused(word, encoding):
    """Names of a run's files are UTF-8: one line says what the locale's encoding is, and what to set."""
    with pytest.raises(UserError, match=f"whose encoding is {encoding}: rename the file, or set a locale of UTF-8"):
        require_text(["data", word], encoding)
    require_text(["data", "café 火"], "utf-8")
    require_text(["data", "cafe"], encoding)


PROGRAM = """
import json, sys
from pathlib import Path
from unmemorize import cli
def run(*arguments):
    sys.argv = ["unmemorize", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code
    return 0
name = "run\\x1b[2J"
codes = [run("data", "pictures", "--run", name, "--json")]
for shard in Path(name).glob("shards/data/*.parquet"):
    shard.write_bytes(b"PAR1")
codes += [run("data", "pictures", "--run", name), run("data", "caf\\udce9")]
print(json.dumps(codes))
"""


@pytest.mark.parametrize("locale", LOCALES)
def test_pictures_of_any_name_are_read_in_any_locale(locale, tmp_path):
    """Nothing that is printed acts on the terminal, nor does the warning that a damaged shard is made anew."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        Image.effect_noise((32, 32), 40 + seed).convert("RGB").save(folder / "z", "PNG")
        os.rename(folder / "z", os.fsencode(folder) + b"/" + name)
        with open(os.fsencode(folder) + b"/" + name.replace(b".png", b".txt"), "w", encoding="utf-8") as file:
            file.write(f"café {seed}")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | LOCALES[locale],
        timeout=120,
    )
    encoding = {"Latin-1": "latin-1"}.get(locale, "utf-8")
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert json.loads(out.splitlines()[-1]) == [0, 0, 2], err
    assert json.loads(out.splitlines()[0])["rows"] == len(NAMES)
    assert acting(out + err) == []
    assert len([line for line in err.splitlines() if "made anew" in line]) == 1
    (refused,) = complaints(err)
    assert refused.startswith("error: caf\\udce9: cannot be named in this locale")
