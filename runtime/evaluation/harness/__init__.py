"""Run tasks of the lm-evaluation-harness (`lm_eval`, extra `eval`) on an exported model."""
