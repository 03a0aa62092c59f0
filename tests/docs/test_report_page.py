"""docs/report.md explains every page that a report has, and names commands that there are."""

import re

from resobj_d2.cli.dispatch import COMMANDS


def test_every_page_is_explained(repository):
    text = (repository / "docs/report.md").read_text()
    folder = repository / "resobj_d2/report"
    code = "".join(path.read_text() for path in folder.glob("*sections.py"))
    titles = set(re.findall(r'\btitle="([^"]+)"', code)) - {"What was measured"}
    titles |= set(re.findall(r'-title">([^<{]+)</h2>', (folder / "page/report.html").read_text()))
    assert {"Summary", "Pictures", "The training", "What it loses by"} <= titles
    for title in titles:
        assert f"**{title}" in text, title


def test_its_commands_exist(repository):
    names = {command.name: {c.name for c in command.commands} for command in COMMANDS}
    for page in ("report.md", "analysis.md", "training.md"):
        text = (repository / "docs" / page).read_text()
        for line in re.findall(r"^resobj-d2 (.+)$", text, re.MULTILINE):
            name, *rest = line.split()
            assert name in names, line
            assert not names[name] or rest[0] in names[name], line
