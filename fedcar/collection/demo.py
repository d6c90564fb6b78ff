"""The packaged collection: service documents of a fleet of robots and what its sites ask (data/SOURCE.md)."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "data"
