"""Alertmanager's configuration for one operator: quick, and with a heartbeat that proves the path works."""

from __future__ import annotations

from typing import Any

from belvedere_operators.alerts.rules import WATCHDOG

REPEAT_SECONDS = 300
HEARTBEAT_SECONDS = 30


def alertmanager_config(*, webhook_url: str, secret_file: str) -> dict[str, Any]:
    """Return the configuration. Alerts about one service go together, one second after the first.

    A firing alert is repeated every few minutes, so that the operator may stop believing one that is not; the watchdog
    more often, because its silence is itself a condition.
    """
    receiver = "belvedere"
    return {
        "route": {
            "receiver": receiver,
            "group_by": ["namespace", "service", "alertname"],
            "group_wait": "1s",
            "group_interval": "5s",
            "repeat_interval": f"{REPEAT_SECONDS}s",
            "routes": [
                {
                    "matchers": [f'alertname="{WATCHDOG}"'],
                    "receiver": receiver,
                    "repeat_interval": f"{HEARTBEAT_SECONDS}s",
                }
            ],
        },
        "receivers": [
            {
                "name": receiver,
                "webhook_configs": [
                    {
                        "url": webhook_url,
                        "send_resolved": True,
                        "max_alerts": 0,
                        "http_config": {"authorization": {"type": "Bearer", "credentials_file": secret_file}},
                    }
                ],
            }
        ],
    }
