"""Every registered method keeps the promises of every method; no exceptions by name."""

import pytest

from kdzoo import registry
from kdzoo.testing import check_method


@pytest.mark.parametrize("name", registry.entries(registry.METHODS))
def test_conforms(name):
    check_method(name)
