"""CLIPScore as the BVPI project computes it: 100 x cosine of picture and text, mean over pictures, at least 0.

Hessel et al., EMNLP 2021, use 2.5 x max(cosine, 0) a pair; the project took torchmetrics' variant, whose
1.9 breaks with transformers 5, so these are fifteen lines of our own. Pictures are squashed to 224 x 224
first, as there; texts are cut to CLIP's 77 tokens. A picture that cannot be read is an error, not skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

CHECKPOINT = "openai/clip-vit-base-patch16"


def clip_scores(
    pictures: Sequence[Path], texts: Sequence[str], checkpoint: str = CHECKPOINT, batch: int = 16
) -> list[float]:
    """Score each text against its picture: 100 x cosine, in the order given.

    Args:
        pictures: image files.
        texts: one a picture.
        checkpoint: hub id or folder of a CLIP model.
        batch: pairs at a time; it does not change the values.

    Raises:
        VideoError: if a picture cannot be read.
        CheckpointError: if the checkpoint cannot be loaded.
    """
    import torch
    from PIL import Image
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    from dashvlm.data.pictures import read_pictures
    from dashvlm.errors import CheckpointError

    try:
        net = CLIPModel.from_pretrained(checkpoint, use_safetensors=True).eval()
        images = CLIPImageProcessorPil.from_pretrained(checkpoint)
        words = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"CLIP cannot be loaded from {checkpoint}", got=reason, do="name the folder of a CLIP model: clip=FOLDER"
        ) from error
    scores: list[float] = []
    for first in range(0, len(texts), batch):
        part = [read_pictures(p, np.array([0]), (224, 224))[0] for p in pictures[first : first + batch]]
        tokens = words(
            list(texts[first : first + batch]), return_tensors="pt", padding=True, truncation=True, max_length=77
        )
        pixels = images([Image.fromarray(p) for p in part], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            seen, read = net.get_image_features(pixel_values=pixels), net.get_text_features(**tokens)
        seen, read = (getattr(x, "pooler_output", x) for x in (seen, read))  # transformers 5 wraps the vector
        scores += (100 * torch.nn.functional.cosine_similarity(seen, read)).tolist()
    return scores


def clip_score(scores: Sequence[float]) -> float:
    """The mean of pair scores, at least 0.

    Example:
        >>> clip_score([20.0, 30.0]), clip_score([-3.0])
        (25.0, 0.0)
    """
    return max(sum(scores) / len(scores), 0.0)
