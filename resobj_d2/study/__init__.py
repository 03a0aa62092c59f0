"""Methods x seeds x data sets: run what is missing, and say what the results prove."""
