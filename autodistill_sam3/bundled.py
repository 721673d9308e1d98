"""Files that come with the project: the shapes checkpoints and the example images.

A wheel carries them inside the package; a checkout has them at its top level.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def bundled_path(relative: str) -> Path:
    """Where a bundled file or folder lies, for example `"models/shapes"`; it may be missing from a broken install."""
    in_wheel = _PACKAGE / "_bundled" / relative
    return in_wheel if in_wheel.exists() else _CHECKOUT / relative


def checkout_models() -> Path | None:
    """`models/` of the checkout that this code runs from, or None when it runs from a wheel."""
    return _CHECKOUT / "models" if (_CHECKOUT / "pyproject.toml").is_file() else None
