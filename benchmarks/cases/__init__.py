"""The cases, one module per group of operators; each has a list ``CASES``."""
