"""Who shall hold what: the catalogue's facts, handed to the pure ranking of `chunks.placement`."""

from __future__ import annotations
