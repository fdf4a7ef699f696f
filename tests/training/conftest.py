from collections.abc import Iterator

import pytest
from training_nursery import Nursery, nursery_of_ranks


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Starts ranks of training stages in a fraction of the time torchrun takes."""
    with nursery_of_ranks() as made:
        yield made
