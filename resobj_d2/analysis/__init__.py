"""Analysis of trained models and configurations. Each module is also a command."""
