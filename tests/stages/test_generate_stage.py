"""Generated pictures: nothing else lies in their folder."""

from __future__ import annotations

from unmemorize.core.specs import GenerateSpec
from unmemorize.stages import generate as stage


def test_what_a_killed_worker_was_writing_is_no_picture(tiny_folder, tmp_path, monkeypatch):
    """The temporary file of a process that is gone, half written, beside the pictures."""
    run_task = stage.run_task

    def with_one_killed(*arguments):
        table = run_task(*arguments)
        (folder,) = tmp_path.glob(".pictures.*")
        (folder / ".1.png.elsewhere.12345.0123abcd.tmp").write_bytes(b"\x89PNG")
        return table

    monkeypatch.setattr(stage, "run_task", with_one_killed)
    spec = GenerateSpec(model=str(tiny_folder), prompt="an owl", steps=2, pictures=2)
    stage.generate(spec, tmp_path / "pictures")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["0.png", "1.png"]
