"""Fixtures of the whole suite, and its order."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.cluster.background import ClusterApp
from tests.engine_fixtures import (  # noqa: F401
    demo_models,
    engine_runtime,
    engine_slot,
    random_models,
    text_engine,
    vision_engine,
)

# How long an example takes says something about the machine, and nothing about the code.
settings.register_profile("captionlake", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("captionlake")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests without Spark come first: they run while the application on two executors does."""

    def place(item: pytest.Item) -> int:
        names = getattr(item, "fixturenames", ())
        if "cluster_run" in names:
            return 1
        return 2 if "spark" in names or item.path.parent.name == "cluster" else 0

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def cluster_app(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterApp | None]:
    """The application on two executors; begun before the first test, where any test looks at it."""
    if not any("cluster_run" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    models, runtime = request.getfixturevalue("random_models"), request.getfixturevalue("engine_runtime")
    app = ClusterApp.started(tmp_path_factory.mktemp("cluster"), models, runtime)
    yield app
    app.end()
