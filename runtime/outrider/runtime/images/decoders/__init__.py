"""How outputs become boxes: one file a kind, each with `decode` (`outrider.runtime.images.boxes.Decoder`)."""
