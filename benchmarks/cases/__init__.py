"""The cases, one module for each group of operators; each has a list ``CASES``."""
