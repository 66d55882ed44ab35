"""Speak with the local Ray through its dashboard: jobs and Serve's declarative config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from belvedere_platform.errors import InvalidInput, Unavailable


@dataclass(frozen=True, kw_only=True)
class RayDashboard:
    """The dashboard of one Ray."""

    address: str
    """HOST:PORT."""
    http: httpx.AsyncClient

    @property
    def host(self) -> str:
        """Return the host."""
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> str:
        """Return the port."""
        return self.address.rpartition(":")[2]

    async def job(self, submission_id: str) -> dict[str, Any] | None:
        """Return what Ray knows of a job, None when it knows none of that id."""
        response = await self._send("GET", f"/api/jobs/{submission_id}")
        if response.status_code == 404:
            return None
        return self._fields(response)

    async def submit(self, submission_id: str, *, entrypoint: str, fields: Mapping[str, Any]) -> None:
        """Submit a job unless one of that id is there already. Raises InvalidInput for what Ray refuses."""
        body = {"entrypoint": entrypoint, "submission_id": submission_id, **fields}
        response = await self._send("POST", "/api/jobs/", json=body, timeout=60.0)
        if response.status_code == 400:
            raise InvalidInput(f"Ray refused the job: {_last_line(response.text)}")
        if response.status_code >= 500 and "already exists" in response.text:
            return
        self._fields(response)

    async def stop_job(self, submission_id: str) -> None:
        """Ask a job to stop: SIGTERM, and SIGKILL after Ray's grace of some seconds."""
        response = await self._send("POST", f"/api/jobs/{submission_id}/stop")
        if response.status_code != 404:
            self._fields(response)

    async def job_logs(self, submission_id: str) -> str:
        """Return what the driver of a job has written."""
        return str(self._fields(await self._send("GET", f"/api/jobs/{submission_id}/logs"))["logs"])

    async def serve_details(self) -> dict[str, Any]:
        """Return what Serve says of itself."""
        return self._fields(await self._send("GET", "/api/serve/applications/"))

    async def deploy(self, config: Mapping[str, Any]) -> None:
        """Make a Serve config the one that holds. Raises InvalidInput for what Serve refuses."""
        response = await self._send("PUT", "/api/serve/applications/", json=config, timeout=60.0)
        if response.status_code == 400:
            raise InvalidInput(f"Ray Serve refused the config: {_last_line(response.text)}")
        if response.is_error:
            raise self._unavailable(f"answered {response.status_code}: {_last_line(response.text)}")

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self.http.request(method, f"http://{self.address}{path}", **options)
        except httpx.HTTPError as error:
            raise self._unavailable(f"does not answer: {type(error).__name__} {error}") from error

    def _fields(self, response: httpx.Response) -> dict[str, Any]:
        if response.is_error:
            raise self._unavailable(f"answered {response.status_code}: {_last_line(response.text)}")
        fields = response.json()
        return fields if isinstance(fields, dict) else {}

    def _unavailable(self, what: str) -> Unavailable:
        return Unavailable(f"the Ray dashboard at http://{self.address} {what}")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "nothing"
