"""The results of ``python -m build``: a complete sdist. What it builds: test_installed_tool.py."""


def test_the_sdist_has_every_file(sdist):
    unpacked, files = sdist
    found = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert files - found == set()
