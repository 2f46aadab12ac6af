"""The looks of the synthetic data set: one file draws one kind of object or texture."""
