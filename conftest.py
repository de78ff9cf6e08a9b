"""Fixtures for the whole suite."""

pytest_plugins = ["tests.spark_fixtures"]
