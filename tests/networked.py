"""What tests need from the network: they are skipped where it does not bring it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ringworld.errors import UserError


@contextmanager
def network() -> Iterator[None]:
    """Around what fetches: a test is skipped, with the reason, where the fetching itself fails."""
    try:
        yield
    except UserError as error:
        if re.search(r"^could not fetch|there is no npm here", str(error)):
            pytest.skip(str(error))
        raise
