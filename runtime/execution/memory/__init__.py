"""The memory of a batch: keys and values, recurrent states, copies of them, and the limit."""
