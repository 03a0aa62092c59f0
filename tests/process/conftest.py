import logging

import pytest


@pytest.fixture
def clean_logging():
    """The loggers that a run sets up are as before afterwards."""
    from resobj_d2.process.console import _LOGGED

    loggers = [logging.getLogger(name) for name in _LOGGED]
    before = [(list(x.handlers), x.level, x.propagate) for x in loggers]
    yield
    logging.captureWarnings(False)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
