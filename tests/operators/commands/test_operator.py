"""What `belvedere operator` refuses before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from belvedere_operators.commands.operator import operator
from belvedere_platform.errors import InvalidInput


@pytest.fixture
def secret(tmp_path: Path) -> str:
    """The option that names a file with a secret."""
    path = tmp_path / "secret"
    path.write_text("hush")
    return f"--alerts-secret-file={path}"


@pytest.mark.parametrize("address", ["redis", "http://redis:6379", "redis:six", "user@redis:6379"])
def test_an_address_that_is_no_redis_is_refused(secret: str, address: str) -> None:
    result = CliRunner().invoke(operator, [secret, f"--ray-redis={address}"])
    assert result.exit_code == 2
    assert "must be HOST:PORT" in result.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ray-redis-password=redis/password"], "without --ray-redis"),
        (["--ray-redis=redis:6379", "--ray-redis-password=redis"], "must be SECRET/KEY"),
    ],
)
def test_a_password_that_cannot_be_found_is_refused(secret: str, words: list[str], says: str) -> None:
    result = CliRunner().invoke(operator, [secret, *words])
    assert isinstance(result.exception, InvalidInput)
    assert says in str(result.exception)
