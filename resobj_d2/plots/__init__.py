"""Drawings of training runs. Each module is a command as well."""
