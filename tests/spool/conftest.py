"""What tests of the spool share: its directory, with and without a volatile one."""

import pytest


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "spool"


@pytest.fixture(params=["volatile", "without"])
def volatile(request, tmp_path):
    return tmp_path / "volatile" if request.param == "volatile" else None
