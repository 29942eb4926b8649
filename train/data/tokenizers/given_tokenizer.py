"""The tokenizer of a run that training goes on from, with the tokens that begin and end its texts."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from ....contract.errors import UserError
from ....contract.messages import EOS
from .tokenizer_json import open_tokenizer


@dataclass(frozen=True)
class GivenTokenizer:
    """A tokenizer whose ids the weights know already, so that nothing may be added to it."""

    content: str
    """Text of its tokenizer.json."""
    name: str
    """What messages call it."""
    end: int
    """Token id that ends a text."""
    begin: int | None = None
    """Token id that begins a text without a chat template; None where texts begin with no token of their own."""
    template: str | None = None
    """Chat template of the run, in our own dialect."""
    foreign_template: bool = False
    """Whether the chat template is one of Hugging Face, by which training cannot write conversations."""

    def load(self) -> Tokenizer:
        """Open the tokenizer as it is, its truncation and padding off.

        Raises:
            UserError: It is damaged, or lacks one of the tokens.
        """
        tokenizer = open_tokenizer(self.content, self.name)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for number in (self.end, self.begin):
            if number is not None and tokenizer.id_to_token(number) is None:
                raise UserError(
                    f"{self.name} has no token {number}, which the run's generation.json names: they do not belong "
                    "together; restore them, or train from the run again under another --name"
                )
        return tokenizer

    def identity(self) -> list[object]:
        """Return what changes the tokens of a text, besides the tokenizer; empty for a run that was trained here."""
        text: str | None = self.load().id_to_token(self.end)
        return [] if text == EOS and self.begin is None else [self.end, self.begin]

    def refuse_conversations(self, chats: int, template: str | None) -> None:
        """Refuse conversations that cannot be written as the model saw them.

        Args:
            chats: Number of conversations in the text.
            template: The template that the config names.

        Raises:
            UserError: There are some, the run has a template of Hugging Face, and the config names no other.
        """
        if chats and self.foreign_template and template is None:
            raise UserError(
                f"the text holds {chats:,} conversations, but the model was imported with a chat template of Hugging "
                "Face, by which training cannot write them; train the model on a template of this program: --set "
                "data.chat_template=FILE; or give plain text"
            )
