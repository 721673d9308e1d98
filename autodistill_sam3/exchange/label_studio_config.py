"""What Label Studio needs besides the tasks: the labelling interface and how to import."""

from __future__ import annotations

import colorsys
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

from autodistill_sam3.errors import LabelingError

IMAGE = "image"
# Control tag -> the name that results refer to it by.
CONTROLS = {"BrushLabels": "brush", "PolygonLabels": "polygon", "RectangleLabels": "rectangle"}
# Neighbours on the circle of hues are told apart even with many classes.
_GOLDEN_RATIO = 0.618034
# In Label Studio's interface a word with a dollar sign stands for a value of the task.
_VARIABLE = re.compile(r"\$[\w\[\].{}]")
_README = """# Import into Label Studio

{served}2. Create a project. Under Settings > Labeling Interface > Code, paste `labels.xml`.
{storage}3. Import {files}. Each task has the labels as a prediction, with the lowest confidence among them as its
   score: sort by Prediction score, lowest first, to see doubtful images first.
4. Correct and submit. An image that is submitted counts, also one without objects; one that is skipped does not.
5. Export as JSON (not JSON-MIN), and make a dataset of it:

   ```
   autodistill-sam3 export {dataset} --from label-studio --file export.json --output corrected
   ```
"""
_LOCAL = (
    """1. Start Label Studio so that it may serve the images:

   ```
   export LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true
   export LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={image_root}
   label-studio start
   ```

""",
    """   Under Settings > Cloud Storage, add a source storage of the type Local Files with this path, and save it
   without synchronising, since the tasks come from a file; without the storage, images are not found:

   ```
   {dataset}
   ```

""",
)
_ELSEWHERE = ("1. Serve the images, so that their addresses begin with `{url_prefix}`, and start Label Studio.\n", "")
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def labeling_config(classes: Sequence[str], controls: Sequence[str]) -> str:
    """The labelling interface as XML.

    Args:
        classes: Class names.
        controls: Keys of `CONTROLS`.

    Raises:
        LabelingError: A class name cannot be written, or Label Studio would read it as something else.

    Example:
        >>> print(labeling_config(["a & b"], ["BrushLabels"]))
        <View>
          <Image name="image" value="$image" zoom="true" zoomControl="true"/>
          <BrushLabels name="brush" toName="image">
            <Label value="a &amp; b" background="#e81717"/>
          </BrushLabels>
        </View>
        <BLANKLINE>
    """
    lines = ["<View>", f'  <Image name="{IMAGE}" value="${IMAGE}" zoom="true" zoomControl="true"/>']
    for control in controls:
        lines.append(f'  <{control} name="{CONTROLS[control]}" toName="{IMAGE}">')
        lines += [f'    <Label value={_quoted(name)} background="{_color(i)}"/>' for i, name in enumerate(classes)]
        lines.append(f"  </{control}>")
    return "\n".join([*lines, "</View>", ""])


def readme(image_root: Path, dataset: Path, files: Sequence[str], url_prefix: str, *, is_local: bool) -> str:
    """How to import the tasks and how to get the corrected result back."""
    served, storage = _LOCAL if is_local else _ELSEWHERE
    return _README.format(
        files=", ".join(f"`{name}`" for name in files),
        served=served.format(image_root=shlex.quote(str(image_root)), url_prefix=url_prefix),
        storage=storage.format(dataset=dataset),
        dataset=shlex.quote(str(dataset)),
    )


def _quoted(name: str) -> str:
    if not name.strip() or _NOT_IN_XML.search(name):
        raise LabelingError(f"Expected a class name that XML can hold for Label Studio, received {name!r}. Rename it.")
    if _VARIABLE.search(name):
        raise LabelingError(
            f"Expected class names without a $ before a word, which Label Studio replaces, received {name!r}. "
            "Rename it."
        )
    return quoteattr(name, {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def _color(index: int) -> str:
    rgb = colorsys.hls_to_rgb(index * _GOLDEN_RATIO % 1, 0.5, 0.82)
    return "#" + "".join(f"{round(255 * value):02x}" for value in rgb)
