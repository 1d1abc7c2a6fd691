"""The table of model families. To add one, write a file here and add its FAMILY below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftm_app.errors import SampleError
from sftm_app.evaluation import (
    causal_lm,
    image_classifier,
    sentence_encoder,
    seq2seq,
    text_classifier,
    zero_shot,
)
from sftm_app.evaluation.building import model_class_of, parse_config
from sftm_app.evaluation.family import Family

# The first one that fits counts. The bare encoder is last, because it also fits classes with a head.
FAMILIES: tuple[Family, ...] = (
    image_classifier.FAMILY,
    zero_shot.FAMILY,
    text_classifier.FAMILY,
    seq2seq.FAMILY,
    causal_lm.FAMILY,
    sentence_encoder.FAMILY,
)


def family_of(class_name: str, config: Mapping[str, Any]) -> Family:
    """The family of a class of transformers with this config.json.

    Raises:
        SampleError: no family fits.
    """
    model_class, parsed = model_class_of(class_name), parse_config(config)
    for family in FAMILIES:
        if family.fits(model_class, parsed):
            return family
    known = ", ".join(family.title for family in FAMILIES)
    raise SampleError(f"The model class {class_name} cannot be tried. Supported: {known}.")
