"""Where the presets are.

Owns the one answer for a checkout and an installed package; must not import torch, ray or gymnasium.
"""

from pathlib import Path

from cluster.engines.own_code import OWN_ROOT


def presets_folder(root: Path = OWN_ROOT) -> Path:
    """The folder of the presets: `configs` in a checkout, package data of qfleet where that is installed."""
    checkout, installed = root / "configs", root / "qfleet" / "presets"
    return installed if installed.is_dir() else checkout
