"""docs/data_check.md lists the findings that there are, and its code runs."""

import re

import yaml
from PIL import Image

from resobj_d2.inspection.findings import LEVELS


def test_every_finding_is_on_the_page(repository):
    code = "".join(path.read_text() for path in (repository / "resobj_d2/inspection").glob("*.py"))
    made = re.findall(r'finding\(\s*(?:"\w+"|level),\s*(?:"(\w+)"|kind)', code)
    made += re.findall(r'\("(?:error|warning)", "(\w+)"\)', code)
    page = (repository / "docs/data_check.md").read_text()
    listed = re.findall(r"^\| (`[`\w, ]+`) \| (?:error|warning|info) \|", page, re.M)
    kinds = {kind for cell in listed for kind in re.findall(r"\w+", cell)}
    from_registration = {"no_size", "outside", "convention"}
    assert kinds == set(made) - {"", *LEVELS} | from_registration
    assert len(kinds) > 12


def test_the_code_runs(repository, tmp_path, monkeypatch, capsys, clean_catalogs):
    page = (repository / "docs/data_check.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text("a.png,10,10,60,60,cell\n")
    Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
    entry = {"format": "csv", "csv": "c.csv", "images": "."}
    config = {
        "_BASE_": "resobj_d2://small/cells_retinanet_fl.yaml",
        "MODEL": {"DEVICE": "cpu", "DENSE": {"NUM_CLASSES": 1}},
        "DATASETS": {
            "REGISTER": [{"name": f"cells_{split}", **entry} for split in ("train", "test")]
        },
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert "error leak 1" in " ".join(lines) and "{'cell': 1.0}" in lines[-1]
