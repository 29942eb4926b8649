"""Requests of many clients on the engines of the models: queue, fairness, deadlines, memory, cancellation."""
