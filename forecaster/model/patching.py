"""From a raw window to patches: instance normalisation and the patch embedding (docs/method.md).

This file owns the location and the spread that every standardised number of the model refers to. It does not read a
forecast back into raw units (`model.py` does), and it does not know the statistics of the memory's keys, which are
the encoder's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forecaster.bounds import above_zero, at_least
from forecaster.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PatchSettings:
    """Windows and their patches: lookback, horizon, patches in steps, d_model in numbers.

    d_model, dropout: of all parts of the network. spread_floor: least spread of a window, relative to its series'
    training standard deviation.
    """

    lookback: int
    horizon: int
    patch_length: int = 16
    patch_stride: int = 8
    d_model: int = 32
    dropout: float = 0.1
    spread_floor: float = 0.3

    def __post_init__(self) -> None:
        at_least(self, 1, "horizon", "patch_length", "patch_stride", "d_model")
        at_least(self, 2, "lookback")
        above_zero(self, "spread_floor")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}, but must be at least 0 and below 1")

    @property
    def num_patches(self) -> int:
        """P: patches of a window that is padded by one stride at its end."""
        return (self.lookback - self.patch_length) // self.patch_stride + 2

    def require_a_patch(self) -> None:
        """Raise `ConfigError` if the lookback is shorter than a patch, which only a network reads."""
        if self.lookback < self.patch_length:
            raise ConfigError(
                f"lookback {self.lookback} is shorter than a patch of {self.patch_length} steps",
                hint=f"lower patch_length to {self.lookback} or less",
            )


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

    projection: W, [patch_length -> D] with a bias. position: learned, [P, D]. P as in `PatchSettings.num_patches`.
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
