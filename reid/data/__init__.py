"""Data: what a dataset is, how it is made ready, how it becomes batches."""
