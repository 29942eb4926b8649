"""Dense and adaptive models after equal training: trainings, measurements and the verdict of `pays.py`."""
