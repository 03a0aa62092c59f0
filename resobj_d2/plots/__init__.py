"""Plots of training runs. Each module is also a command."""
