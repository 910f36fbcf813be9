"""Attacks on what anyone can reach before a request is understood: connections, paths, headers, tokens."""

from __future__ import annotations

import urllib.error
import urllib.request

from service_process import Service

from attacks import Attack, AttackError

PATHS = 2_000
MOST_BYTES = 200_000


def unknown_paths(service: Service) -> str:
    for number in range(PATHS):
        try:
            urllib.request.urlopen(f"{service.url}/no/such/path/{number}")
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                raise AttackError(f"status {error.code}") from error
    request = urllib.request.Request(f"{service.url}/metrics", headers={"Authorization": f"Bearer {service.token}"})
    size = len(urllib.request.urlopen(request).read())
    if size > MOST_BYTES:
        raise AttackError(f"/metrics has {size} bytes")
    return f"/metrics has {size} bytes after {PATHS} unknown paths"


ATTACKS = {
    "b06_unknown_paths": Attack("Unknown paths must not become labels of metrics.", unknown_paths),
}
