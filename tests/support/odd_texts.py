"""Odd texts, seeded: scripts, spaces, controls, emoji, numbers, code, and spellings of tokens."""

import random

PIECES = [
    "the", "The quick", " brown", "  ", "   ", "\t", "\n", "\r\n", "\n\n", " \n ", "\u00a0",
    "\u2003", "\u200b", "\u200d", "\ufeff", "a", "I'm", "don't", "it's 12.5", "0x1F", "1234567",
    "3,14", "e\u0301", "é", "ﬁ", "Å", "ß", "İ", "ǆ", "Ⅷ", "①", "½", "x²", "中文", "日本語", "한국어", "ไทย",
    "עברית", "العربية", "हिन्दी", "Ω", "Привет", "🙂", "👨\u200d👩\u200d👧", "🇫🇷", "👍🏽", "\U0001f9d1",
    "def f(x):\n    return x", "<a href='x'>", "{{ x }}", "</s", "<s", "<0x41>", "▁", "▁▁", "Ġ",
    "##ing", "</w>", "|", "_", "-", "…", "—", "“q”", "\x00", "\x07", "\x1b[0m", "\x7f", "\ufffd",
    "\ue000", "\U0010ffff", "http://x.y/z?a=b&c", "a@b.c", "C:\\x", "x" * 70, "ab" * 40, ".", "...",
    "?!", "(", ")", "'", '"', "`", "$", "%", "^", "~", "\\", "/",
]  # fmt: skip


def odd_texts(count: int, seed: int = 0) -> list[str]:
    """Return texts of up to twelve pieces, and a few of any characters."""
    choice = random.Random(seed)
    texts = ["", " ", "\n"]
    while len(texts) < count:
        if choice.random() < 0.1:
            codes = (choice.randrange(1, 0x110000) for _ in range(choice.randrange(1, 20)))
            texts.append("".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000))
        else:
            texts.append(
                "".join(choice.choice(PIECES) + choice.choice(("", "", " ")) for _ in range(choice.randrange(1, 12)))
            )
    return texts[:count]
