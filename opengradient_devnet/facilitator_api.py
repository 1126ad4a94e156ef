"""signatures only, the body follows"""

from __future__ import annotations

from starlette.applications import Starlette

from opengradient_devnet.facilitator import Facilitator


def facilitator_app(facilitator: Facilitator) -> Starlette:
    """An app with GET /supported, POST /verify, /settle, /settle_data: mount it at /facilitator."""
    raise NotImplementedError
