"""The documentation does what it says: its code runs, its options exist, and its site builds.

Every fenced block of README.md, CONTRIBUTING.md and docs/*.md is run, page by page and in order, in a folder that has
what the pages speak of (MODEL is a tiny pipeline, captions.csv a file of prompts). Commands are given `SMALL` options
besides. A block under `<!-- not run: reason -->` is only checked: its commands have to parse, its imports to exist.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from cyclopts import App, CycloptsError

from unmemorize.cli import app
from unmemorize.core import methods

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n+)?^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S
)
SHELL = re.compile(r"(unmemorize|make|pip|git|python|accelerate|torchrun) ")
MEMORIES = ("an owl on a fence", "the old harbour")
SMALL = {
    "attack": "--updates 1 --pictures 1 --steps 2 --limit 1",
    "audit": "--seeds 1 --generate 4 --pictures 1 --explain 1 --steps 2 --mitigation none",
    "detect": "--seeds 1",
    "generate": "--pictures 1 --steps 2",
    "mitigate": "--updates 1 --pictures 1 --steps 2 --attack-updates 1",
    "triggers": "--limit 1 --repeats 1 --pictures 1 --steps 2",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, code, line, and why it is not run, if it is not."""

    language: str
    code: str
    line: int
    reason: str | None


def blocks(text: str) -> list[Block]:
    """The shell and Python blocks of a page; one without a language is a shell block where it reads like one."""
    found = []
    for match in FENCE.finditer(text):
        language, code = match["language"] or ("sh" if SHELL.match(match["code"]) else "text"), match["code"]
        assert language in ("sh", "python", "text", "json") or language.startswith("{"), f"a fence of {language}"
        if language in ("sh", "python"):
            found.append(Block(language, code, text.count("\n", 0, match.start("code")) + 1, match["reason"]))
    return found


def commands(code: str) -> list[list[str]]:
    """The commands of a shell block, in words, comments left out."""
    lines = [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


def options(command: App) -> set[str]:
    """The options of a command and of those below it."""
    own = command.assemble_argument_collection() if command.default_command else []
    names = {name for argument in own for name in (*argument.names, *argument.negatives)}
    below = [command[name] for name in command if not name.startswith("-")]
    return names.union({"--help", "--version", "--install-completion"}, *map(options, below))


ANY = options(app) | {"--num_processes", "--nproc_per_node"}  # of accelerate and torchrun


def check(words: list[str]) -> None:
    """Fail where a command could not be typed: an unknown command, option or choice, target, extra or script."""
    if words[0] in ("unmemorize", "accelerate", "torchrun"):
        app.parse_args(words[words.index("unmemorize") + 1 :], exit_on_error=False, print_error=False)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(words[1:]) <= set(targets), f"no such target: {words}"
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"\[(.*?)\]", " ".join(words))
        assert all(extra in extras for group in named for extra in group.split(",")), f"no such extra: {words}"
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), f"no such script: {words}"


def check_imports(code: str) -> None:
    """Fail where a Python block is no Python or imports what is not there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names), f"line {node.lineno}: no such name"


def unknown_options(text: str) -> list[str]:
    """Options in running text that do not exist: in the command that they stand behind, or in any."""
    found = []
    for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        known = ANY
        if words := re.match(r"unmemorize ([a-z ]+)", span):
            name = words[1].split()[0]
            assert name in app, f"no such command: {span}"
            known = options(app[name])
        found += [option for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span) if option not in known]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands_can_be_typed_and_options_exist(page):
    text = page.read_text(encoding="utf-8")
    for block in blocks(text):
        if block.language == "python":
            check_imports(block.code)
        for words in commands(block.code) if block.language == "sh" else ():
            check(words)
    assert not unknown_options(text)


WRONG = {
    "an option": "```sh\nunmemorize audit MODEL --no-such 3\n```\n",
    "a choice": "```sh\nunmemorize audit MODEL --plan quik\n```\n",
    "a command": "```sh\nunmemorize audits MODEL\n```\n",
    "a fence without a language": "```\nunmemorize audit --no-such\n```\n",
    "a block that is not run": "<!-- not run: slow -->\n```sh\nunmemorize attack \\\n    --no-such 1\n```\n",
    "another program's": "<!-- not run: slow -->\n```sh\naccelerate launch -m unmemorize mitigate --no-such 1\n```\n",
    "a target": "<!-- not run: slow -->\n```sh\nmake nothing\n```\n",
    "an import": "<!-- not run: slow -->\n```python\nfrom unmemorize import nothing\n```\n",
    "running text": "It has `--no-such`.\n",
    "a command in running text": "Say `unmemorize detect MODEL --sscd FILE`.\n",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_wrong_page_is_found(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises((AssertionError, CycloptsError)):
        test_commands_can_be_typed_and_options_exist(page)


@pytest.fixture(scope="module")
def cabinet(tiny_folder, tmp_path_factory):
    """What the pages speak of: a pipeline, prompts, and folders of pictures, two of which the pipeline copies."""
    import numpy as np
    from PIL import Image

    from unmemorize.core.sample import Sampler, generate
    from unmemorize.data.pictures import save_image
    from unmemorize.models.load import load

    root, rng = tmp_path_factory.mktemp("cabinet"), np.random.default_rng(0)
    model = load(str(tiny_folder))
    copied = generate(model, model.encode(MEMORIES), seeds=[0, 0], sampler=Sampler(2))
    for name in ("memorized", "others", "ordinary", "training-pictures", "held-out", "pictures-before"):
        (root / name).mkdir()
        for k in range(8):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / name / f"{k}.png")
            (root / name / f"{k}.txt").write_text(f"word{k} other{k} thing{k}")
    for path in (root / "memorized").iterdir():
        path.unlink()
    for k, caption in enumerate(MEMORIES):
        save_image(copied[k], root / "memorized" / f"{k}.png")
        (root / "memorized" / f"{k}.txt").write_text(caption)
    rows = [*MEMORIES, "a green bicycle", "two red kites over a field", "a lighthouse at dusk"]
    for name in ("captions.csv", "prompts.csv", "memorized.csv"):
        (root / name).write_text("\n".join(["caption", *rows]))
    (root / "copied").mkdir()
    for name, place in (("targets", "memorized"), ("controls", "others"), ("prompts.csv", "memorized.csv")):
        (root / "copied" / name).symlink_to(root / place)
    (root / "ordinary.txt").write_text("\n".join(f"a plain picture of thing {k}" for k in range(120)))
    (root / "path" / "to").mkdir(parents=True)
    for name in ("MODEL", "path/to/pipeline"):
        (root / name).symlink_to(tiny_folder)
    for name in ("path/to/training-set", "SOURCE"):
        (root / name).symlink_to(root / "training-pictures")
    for name, place in (("MORE", "others"), ("new-pictures", "others"), ("picture.png", "others/0.png")):
        (root / name).symlink_to(root / place)
    return root


@pytest.fixture
def folder(cabinet, tmp_path, monkeypatch):
    """A folder of its own for each page, with the cabinet's content, where commands are run and methods forgotten."""
    known = {kind: dict(methods.methods(kind)) for kind in methods.GROUPS}
    monkeypatch.setattr(methods, "_METHODS", known)
    for path in cabinet.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names() -> dict:
    """What Python blocks take for granted: a pipeline, a model, and somebody's training loop."""
    import torch

    from unmemorize.models.load import load

    model = load("testbed")
    x, noise = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Conv2d(4, 4, 1)
    return {
        "pipe": model.pipe,
        "model": model,
        "captions": ["a cat", "a dog", "a tree"],
        "encode": lambda prompts: model.encode(prompts).embeds,
        "denoiser": lambda x, t, embeds: layer(x) + 0 * embeds.sum(),
        "optimizer": torch.optim.SGD(layer.parameters(), 0.1),
        "x": x,
        "t": torch.tensor([100, 500, 900]),
        "noise": noise,
    }


RUN = [page for page in PAGES if any(block.reason is None for block in blocks(page.read_text(encoding="utf-8")))]


def without(words: list[str], options: list[str]) -> list[str]:
    """A command without some options and their values."""
    taken = {i + k for i, word in enumerate(words) if word in options for k in (0, 1)}
    return [word for i, word in enumerate(words) if i not in taken]


@pytest.mark.parametrize("page", RUN, ids=lambda p: p.stem)
def test_every_block_runs(page, folder, call):
    space: dict = {}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.reason is not None:
            continue
        if block.language == "python":
            space = space or names()
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), space)
            continue
        for words in commands(block.code):
            assert words[0] == "unmemorize", f"{page.name}: {words[0]}: mark the block: <!-- not run: reason -->"
            small = [] if page.stem == "tutorial" else SMALL.get(words[1], "").split()
            code, _, complaint = call(*without(words[1:], small[::2]), *small)
            assert code == 0, f"{page.name}: {' '.join(words)}: {complaint}"


def test_the_site_builds_without_a_warning(tmp_path):
    """A page that no table of contents lists, a dead link, a docstring that is no text: each is a warning."""
    build = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", str(ROOT / "docs")]
    done = subprocess.run([*build, str(tmp_path / "site")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", methods.GROUPS)
def test_every_method_stands_in_the_interface(kind):
    described = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    ours = [cls for cls in methods.methods(kind).values() if cls.__module__.startswith("unmemorize.")]
    assert ours
    assert [cls.name for cls in ours if f"{cls.__module__}.{cls.__name__}\n" not in described] == []
