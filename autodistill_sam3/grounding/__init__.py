"""Images and prompts -> boxes."""

from autodistill_sam3.grounding.grounder import Grounder

__all__ = ["Grounder"]
