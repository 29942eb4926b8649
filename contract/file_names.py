"""Names of the files that one package writes and another reads."""

# In the folder of a run: train writes, export reads.
CONFIG = "config.yaml"
HELDOUT = "heldout.txt"
TASKS = "tasks.json"
"""Name, token and held-out text of each task."""
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION = "generation.json"
"""Ends, special tokens, templates and sampling of an imported model; see `generation_settings`."""
PROVENANCE = "provenance.json"
VERSIONS = "versions.json"

# In the folder of a run and in that of an exported model.
TOKENIZER = "tokenizer.json"

# In the folder of an exported model: export writes, runtime reads.
MANIFEST = "manifest.json"
GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"  # the only file that the graph may point to


def target_files(target: str) -> tuple[str, str]:
    """Return the file of a target's graph, and the only file that this graph may point to."""
    return (GRAPH, WEIGHTS) if target == "portable" else (f"model.{target}.onnx", f"model.{target}.onnx.data")
