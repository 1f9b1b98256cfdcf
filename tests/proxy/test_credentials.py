from __future__ import annotations

import pytest

from cortexd.proxy.credentials import without_credentials


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("", ""),
        ("key=s3cret", ""),
        ("api-version=1&key=s3cret&x=", "api-version=1&x="),
        ("Api-Key=s&access_token=t&token&API_KEY=u", ""),
        ("a=%26key%3D1&keys=2&b", "a=%26key%3D1&keys=2&b"),
    ],
)
def test_query_loses_only_the_parameters_that_hold_a_secret(query: str, kept: str) -> None:
    assert without_credentials(query) == kept
