"""Labels of defective images: of what kind a defect is, and where, as far as somebody said so."""
