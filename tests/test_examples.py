"""The standalone example runs, learns, and needs no Detectron2."""

import os
import re
import subprocess
import sys


def test_squares_are_found_without_detectron2(repository):
    script = repository / "docs/examples/squares.py"
    code = (
        f"import runpy, sys\nsys.argv = [{str(script)!r}, '--steps', '150']\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "assert 'detectron2' not in sys.modules and 'fvcore' not in sys.modules\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=repository, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = re.search(r"recall of 64 new images: (\d\.\d\d)", run.stdout)
    assert float(found[1]) > 0.7, run.stdout
