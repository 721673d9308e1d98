"""What JPEG does to pixels, for batches on any device: 4:2:0 chroma and quantised 8 x 8 cosine transforms.

Tables and steps after ITU-T T.81 (annex K) and the scaling by quality that libjpeg uses. Without entropy coding, which
loses nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

BLOCK = 8
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# Rows: Y, Cb, Cr of full-range BT.601.
RGB_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg_artefacts(images: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """Images as they come back from a JPEG file.

    Args:
        images: (B, 3, H, W) RGB in 0..1.
        quality: (B,) in 1..100, as libjpeg's.

    Returns:
        (B, 3, H, W) in 0..1.

    Example:
        >>> gray = torch.full((1, 3, 16, 16), 0.5)
        >>> bool((jpeg_artefacts(gray, torch.tensor([50.0])) - gray).abs().max() < 0.01)
        True
    """
    height, width = images.shape[-2:]
    # Chroma blocks cover 16 pixels.
    padded = F.pad(images, (0, -width % 16, 0, -height % 16), mode="replicate")
    to_ycbcr = images.new_tensor(RGB_TO_YCBCR)
    ycbcr = torch.einsum("dc,bchw->bdhw", to_ycbcr, padded) * 255
    luma = _quantise(ycbcr[:, :1] - 128, LUMA_TABLE, quality) + 128
    chroma = _quantise(F.avg_pool2d(ycbcr[:, 1:], 2), CHROMA_TABLE, quality)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear")
    restored = torch.einsum("dc,bchw->bdhw", torch.linalg.inv(to_ycbcr), torch.cat([luma, chroma], dim=1))
    return (restored / 255).clamp(0, 1)[..., :height, :width]


def _quantise(channels: torch.Tensor, table: tuple[tuple[int, ...], ...], quality: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W), both sides multiples of 8."""
    batch, count, height, width = channels.shape
    blocks = channels.reshape(batch, count, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    cosine = _cosines(channels)
    steps = _steps(table, quality)[:, None, None, :, None, :]
    coefficients = torch.einsum("ui,bcyixj,vj->bcyuxv", cosine, blocks, cosine)
    coefficients = (coefficients / steps).round() * steps
    return torch.einsum("ui,bcyuxv,vj->bcyixj", cosine, coefficients, cosine).reshape(channels.shape)


def _cosines(like: torch.Tensor) -> torch.Tensor:
    """The orthonormal DCT-II: row u is the u-th wave."""
    index = torch.arange(BLOCK, device=like.device, dtype=like.dtype)
    waves = torch.cos((2 * index[None] + 1) * index[:, None] * math.pi / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    waves[0] /= math.sqrt(2)
    return waves


def _steps(table: tuple[tuple[int, ...], ...], quality: torch.Tensor) -> torch.Tensor:
    """(B, 8, 8) widths of the quantiser."""
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None]
    return ((quality.new_tensor(table) * scale + 50) / 100).floor().clamp(1, 255)
