"""Methods x seeds x datasets: run what is missing, and say what the results prove."""
