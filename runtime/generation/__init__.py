"""From a prompt to text: tokenizer, chat template, sampler, engine."""
