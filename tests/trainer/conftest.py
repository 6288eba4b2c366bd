"""The pair and the model of the tests here."""

import pytest

from tests.helpers.trainers import small_model, small_pair


@pytest.fixture(scope="package")
def pair():
    return small_pair()


@pytest.fixture(scope="package")
def model(pair):
    return small_model(pair)
