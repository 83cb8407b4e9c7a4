"""What tests of the engine share."""

import torch


def difference(ours, theirs):
    """The largest difference of the logits of two results, as a share of the largest logit; tokens are the same."""
    assert torch.equal(ours.sequences, theirs.sequences)
    pairs = list(zip(ours.logits, theirs.logits, strict=True))
    return max(float((x - y).abs().max()) for x, y in pairs) / max(1.0, *(float(y.abs().max()) for _, y in pairs))
