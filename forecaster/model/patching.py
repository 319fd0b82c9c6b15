"""From a raw window to patches: instance normalisation and the patch embedding (docs/method.md).

This file owns the location and the spread that every standardised number of the model refers to. It does not read a
forecast back into raw units (`model.py` does), and it does not know the statistics of the memory's keys, which are
the encoder's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def instance_norm(context: Tensor, unit: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Location and spread of each window, both float32 [B], raw units: `z = (context - location) / spread`.

    location is the mean, spread the standard deviation (ddof 0), but at least `floor * unit`: a nearly constant window
    divided by its tiny spread would explode. context: float32 [B, L], raw units. unit: float32 [B], above 0, the
    training standard deviation of the window's series. floor: relative to the unit, above 0.

    Windows are measured from their last value and in their unit before anything is summed or squared: float32 holds
    seven digits, and a level of a million would use up all of them. (RevIN, Kim et al., ICLR 2022, without its affine
    map.)
    """
    last = context[:, -1]
    offset = (context - last[:, None]) / unit[:, None]  # [B, L]
    mean = offset.mean(dim=1)
    deviation = (offset - mean[:, None]).square().mean(dim=1).sqrt()
    return last + unit * mean, unit * deviation.clamp(min=floor)


def patches_of(z: Tensor, patch_length: int, stride: int) -> Tensor:
    """Overlapping patches of windows whose last value is repeated for one stride: [B, L] -> [B, P, patch_length].

    P = (L - patch_length) // stride + 2. Steps come oldest first; where P patches do not reach the padded end, it is
    the padding that is cut. (PatchTST, Nie et al., ICLR 2023.)
    """
    padding = z[:, -1:].expand(-1, stride)
    return torch.cat([z, padding], dim=1).unfold(dimension=1, size=patch_length, step=stride)


class PatchEmbedding(nn.Module):
    """Standardised windows z [B, L] -> patches [B, P, D].

        patches_p = dropout(W z[p * stride : p * stride + patch_length] + position_p)

    projection: W, [patch_length -> D] with a bias. position: learned, [P, D]. P as in `ModelConfig.num_patches`.
    """

    def __init__(self, lookback: int, patch_length: int, stride: int, d_model: int, *, dropout: float) -> None:
        super().__init__()
        self.patch_length = patch_length
        self.stride = stride
        num_patches = (lookback - patch_length) // stride + 2
        self.projection = nn.Linear(patch_length, d_model)
        self.position = nn.Parameter(0.02 * torch.randn(num_patches, d_model))  # small beside the patches themselves
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor) -> Tensor:
        """z: [B, L], standardised, exactly the lookback that the embedding was made for -> [B, P, D]."""
        patches = patches_of(z, self.patch_length, self.stride)  # [B, P, patch_length]
        embedded: Tensor = self.dropout(self.projection(patches) + self.position)
        return embedded
