"""Documents to units and back: segmenters by kind of content, and the writer."""
