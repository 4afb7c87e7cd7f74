"""The daemon's own housekeeping; the path through all of it is in end_to_end/."""

import gc
import weakref

import pytest

from agent import daemon


class Configuration:
    """Stands in a circle, as a prober and its parts may."""

    def __init__(self):
        self.itself = self


@pytest.fixture
def _collector():
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("_collector")
def test_configurations_do_not_pile_up():
    """What a configuration kept is free once the next one is in force, in a circle or not; what is in use stays."""
    before, now = Configuration(), Configuration()
    kept, gone = weakref.ref(now), weakref.ref(before)
    daemon._keep_for_long()
    del before
    gc.collect()
    assert gone() is not None, "kept out of the collector's way"
    daemon._keep_for_long()
    assert gone() is None
    assert kept() is now
