"""Small language models of this project and of other libraries, for `small_models.py`."""
