"""The helpers of the tests."""

import time

import pytest

from model import Classifier, IntegrityError
from tests.app.running import serving


def test_a_service_that_fails_is_noticed_at_once() -> None:
    def load() -> Classifier:
        raise IntegrityError("the self-test failed")

    began = time.monotonic()
    with pytest.raises(AssertionError, match="see the log for the reason"), serving(load=load):
        pass
    assert time.monotonic() - began < 60, "it does not wait until the service is ready"
