"""Large images by overlapping tiles: what the tiles of an image show becomes detections of the image. No torch."""

from autodistill_sam3.tiling.tiles import DEFAULT_TILE, default_overlap, detect_in_tiles, tiles_of

__all__ = ["DEFAULT_TILE", "default_overlap", "detect_in_tiles", "tiles_of"]
