"""Settings of every test: nothing asks a hub over the network. Set before any Hugging Face library is imported."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

pytest.register_assert_rewrite("tests.helpers")
