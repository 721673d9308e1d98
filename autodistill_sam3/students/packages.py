"""Packages that only some students need, and what they say that nobody has to read."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator

from autodistill_sam3.errors import MissingPackageError


def require(module: str, extra: str) -> None:
    """Make sure that a package can be imported.

    Args:
        module: To be imported.
        extra: Of this package, which installs it.

    Raises:
        MissingPackageError: It cannot; the message has the pip line.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"Expected the package {module}, which this student needs: {error}. "
            f"pip install 'autodistill-grounded-sam3[{extra}]'"
        ) from error


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Without torch's warnings that values are constants in a graph, and that the exporter used is the older one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
