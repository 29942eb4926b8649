"""Names of the files that one package writes and another reads."""

# In the folder of a run: train writes, export reads.
CONFIG = "config.yaml"
HELDOUT = "heldout.txt"
CHAT_TEMPLATE = "chat_template.jinja"
VERSIONS = "versions.json"

# In the folder of a run and in that of an exported model.
TOKENIZER = "tokenizer.json"

# In the folder of an exported model: export writes, runtime reads.
MANIFEST = "manifest.json"
GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"  # the only file that the graph may point to
