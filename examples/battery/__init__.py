"""The battery: the front door against the best of tuned plain training, on many kinds of data."""
