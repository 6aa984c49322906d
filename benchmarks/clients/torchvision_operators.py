"""torchvision without its compiled operators.

timm imports torchvision for transformations of images. The wheel of torchvision that the package registry
has is compiled against a torch with CUDA: beside another build of torch its operators do not load. That is no
error until torchvision registers forms of two of them, which are not there ("operator torchvision::nms does
not exist"). No client calls them, so it is enough that they are declared.
"""

from __future__ import annotations

import sys
from functools import cache

import torch

DECLARED = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def import_torchvision() -> torch.library.Library | None:
    """torchvision imported; operators that did not load are declared for as long as the result lives."""
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    else:
        return None
    for name in [each for each in sys.modules if each.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # begun, and not ended
    library = torch.library.Library("torchvision", "DEF")
    for schema in DECLARED:
        library.define(schema)
    import torchvision  # noqa: F401

    return library
