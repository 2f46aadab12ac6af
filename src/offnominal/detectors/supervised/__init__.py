"""Methods that learn from defective images as well: a few of them, or many."""
