"""Prompts go to models, unique classes to datasets."""

from __future__ import annotations

import numpy as np
import pytest
from autodistill.detection import CaptionOntology, DetectionOntology

from autodistill_sam3 import OntologyError
from autodistill_sam3.ontology import PromptTable


def test_two_prompts_of_one_class():
    table = PromptTable.from_ontology(CaptionOntology({"flask": "bottle", "can": "tin", "milk bottle": "bottle"}))
    assert table.prompts == ("flask", "can", "milk bottle")
    assert table.classes == ("bottle", "tin")
    assert table.class_ids(np.array([2, 1, 0, 0])).tolist() == [0, 1, 0, 0]
    assert table.class_ids(np.zeros(0, np.int64)).shape == (0,)


def test_repeated_prompt_is_asked_once():
    assert PromptTable.from_ontology(DetectionOntology([("a", "x"), ("a", "x"), ("b", "y")])).prompts == ("a", "b")


@pytest.mark.parametrize(
    "pairs", [[], [("a", "x"), ("a", "y")], [(np.zeros((2, 2)), "x")], [("a", 3)], [("  ", "x")], [("a", "")]]
)
def test_unusable_ontologies(pairs):
    with pytest.raises(OntologyError, match="Expected"):
        PromptTable.from_ontology(DetectionOntology(pairs))


def test_no_ontology():
    with pytest.raises(OntologyError, match="CaptionOntology"):
        PromptTable.from_ontology({"a": "b"})
