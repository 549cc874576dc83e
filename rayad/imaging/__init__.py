"""Files to pixels: decoding at full depth, working resolution, tissue masks."""
