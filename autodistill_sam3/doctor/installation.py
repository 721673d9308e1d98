"""Whether the module that is imported is the one that this project's distribution installed.

Another plugin on the package index, `autodistill-sam3`, ships a module of the same name. Whichever of the two is
installed last overwrites files of the other, and removing either one takes the shared files away.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import autodistill_sam3
from autodistill_sam3.doctor.report import Finding
from autodistill_sam3.doctor.settings import RunSettings

DISTRIBUTION = "autodistill-grounded-sam3"
REINSTALL = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"

_finding = partial(Finding, "Installation")

_MODULE = "autodistill_sam3"
_OTHER = "autodistill-sam3"


def check_installation(run: RunSettings) -> Iterator[Finding]:
    """Another distribution that ships our module, our files changed, or another copy of them imported."""
    del run
    ours, others = _ours(), _others()
    changed = _changed_files(ours)
    if others:
        broken = bool(changed) or not _is_ours()
        yield _finding(
            "module",
            f"{', '.join(others)} installs the module {_MODULE} too"
            + (f", and has replaced files of {DISTRIBUTION}" if broken else f"; {DISTRIBUTION}'s files are in place"),
            "problem" if broken else "warning",
            f"pip uninstall {' '.join(others)}, then, since that removes files of both: {REINSTALL}",
        )
    elif changed or not _is_ours():
        files = f": {', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''}" if changed else ""
        yield _finding("module", f"is not as {DISTRIBUTION} installed it{files}", "warning", REINSTALL)
    else:
        yield _finding("module", f"{_MODULE} is {DISTRIBUTION}'s")
    yield from _place(ours)


def _ours() -> metadata.Distribution | None:
    try:
        return metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def _others() -> list[str]:
    """Other distributions that install our module; an editable one names no files, but is known by its name."""
    names = {_normal(name) for name in metadata.packages_distributions().get(_MODULE, ())}
    names |= {_normal(each.name) for each in metadata.distributions(name=_OTHER)}
    return sorted(names - {DISTRIBUTION})


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_ours() -> bool:
    return "GroundedSAM3" in getattr(autodistill_sam3, "__all__", ())


def _changed_files(ours: metadata.Distribution | None) -> list[str]:
    """Files of our module that are gone or have another content than the installer noted."""
    changed = []
    for file in (ours.files if ours is not None else None) or ():
        if file.suffix != ".py" or file.parts[0] != _MODULE or file.hash is None:
            continue
        path = Path(str(file.locate()))
        if not path.is_file() or _digest(path, file.hash.mode) != file.hash.value:
            changed.append(str(file))
    return changed


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _place(ours: metadata.Distribution | None) -> Iterator[Finding]:
    """Where the module comes from, if that is not where the distribution is."""
    imported = Path(__file__).resolve().parent.parent
    if ours is None:
        yield _finding("place", f"{imported}, without being installed", "info")
        return
    editable = _editable_folder(ours)
    installed = Path(str(ours.locate_file(_MODULE))).resolve()
    if editable is not None:
        if not imported.is_relative_to(editable):
            yield _elsewhere(imported, editable)
    elif imported != installed:
        yield _elsewhere(imported, installed)


def _elsewhere(imported: Path, installed: Path) -> Finding:
    return _finding(
        "place",
        f"imported from {imported}, installed in {installed}",
        "warning",
        "If the first is not meant, start from another folder, and look at PYTHONPATH.",
    )


def _editable_folder(ours: metadata.Distribution) -> Path | None:
    text = ours.read_text("direct_url.json")
    if text is None:
        return None
    content = json.loads(text)
    if not content.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(content["url"]).path)).resolve()
