"""Looking into trained models and training runs. Each module is a command as well."""
