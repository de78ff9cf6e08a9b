"""Fixtures of the whole suite."""

from tests.engine_fixtures import (  # noqa: F401
    demo_models,
    engine_runtime,
    engine_slot,
    text_engine,
    vision_engine,
)
