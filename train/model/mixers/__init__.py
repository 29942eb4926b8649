"""Token mixers with a state of constant size, which a layer may have in place of attention.

`config.py` is light, so that the config of a run loads without torch; `build.py` has the table of mixers.
"""
