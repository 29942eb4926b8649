"""The table of byte-level tokenizers: one printable character for each byte (GPT-2)."""


def byte_characters() -> list[str]:
    """List the printable character that byte-level tokenizers write for each byte, 0 to 255."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
