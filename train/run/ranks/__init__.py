"""The folder of a run over several ranks: who locks it, and what the ranks use that write nothing."""
