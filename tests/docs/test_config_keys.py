"""docs/config_keys.md agrees with the declarations of the keys."""

import sys

from docs.generators.config_keys import main, page


def test_page_is_up_to_date(repository, warm_python):
    """In a separate process, since other tests register their own entries."""
    command = [sys.executable, "-W", "ignore", "-m", "docs.generators.config_keys"]
    made = warm_python.run(command, cwd=repository, check=True)
    assert (repository / "docs/config_keys.md").read_text() == made.stdout


def test_page_lists_keys_with_default_meaning_reader_and_source(tmp_path):
    main(["--write", str(tmp_path / "keys.md")])
    rows = (tmp_path / "keys.md").read_text().splitlines()
    row = next(row for row in rows if row.startswith("| `MODEL.DENSE.CLS_LOSS.FOCAL_GAMMA`"))
    assert row == (
        "| `MODEL.DENSE.CLS_LOSS.FOCAL_GAMMA` | `2.0` | float | focusing exponent; 0 gives cross "
        "entropy | `SigmoidFocalLoss` | RetinaNet, Eq. 5 |"
    )
    # The anchor-free stream's keys are only listed if they differ.
    assert "`MODEL.DENSE.ANCHOR_FREE.CODER.NAME`" in page()
    assert "ANCHOR_FREE.CLS_LOSS.FOCAL_GAMMA" not in page()
