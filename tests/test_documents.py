"""What the documents tell people to type: commands that exist, with options that exist, and Python that runs."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from ling.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("guides/*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def commands(program: str) -> list[tuple[str, str]]:
    """Return (page, line) of every command line that starts `program`, also behind a pipe."""
    found = []
    for page in PAGES:
        for line in "\n".join(blocks(page, "", "sh")).splitlines():
            for part in line.split(" | "):
                if part.strip().startswith(f"{program} "):
                    found.append((page.name, part.strip()))
    return found


@pytest.mark.parametrize(("page", "line"), commands("ling"))
def test_commands_parse(page: str, line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)[1:]
    group = get_command(app)
    command = group.get_command(typer.Context(group), name)
    assert command is not None, f"{page}: ling has no command {name}"
    command.make_context(name, arguments)  # raises on an unknown option, or a missing argument


@pytest.mark.parametrize(("page", "line"), commands("make"))
def test_make_targets_exist(page: str, line: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in (word for word in shlex.split(line, comments=True)[1:] if "=" not in word):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: no target {target}"


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda p: p.name)
def test_the_python_of_the_front_page_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(page, "python")
    exec(compile(code, page.name, "exec"), {})
    assert "Ling" in capsys.readouterr().out


def test_both_front_pages_show_the_same_figures() -> None:
    def figures(page: Path) -> list[str]:
        text = page.read_text(encoding="utf-8")
        cells = re.findall(r"^\|[^|]+\| ([^|]+) \|$", text.partition("| ---: |")[2].partition("\n\n")[0], re.MULTILINE)
        return [number for cell in cells for number in re.findall(r"\d[\d.,]*", cell)]

    assert len(figures(PAGES[0])) >= 7
    assert figures(PAGES[0]) == figures(PAGES[1])
