"""A teacher as the model that training asks: frozen, with the token ids of the student.

B batch, T time, V tokens of the student's tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ...contract.errors import UserError
from ...contract.messages import EOS
from ..data.tokenizers.ids import vocabulary_size
from ..model.transformer import Transformer
from ..run.checkpoints.tensor_file import LazyTensor
from ..system.device import autocast
from .teacher_source import TeacherSource


class Answer(NamedTuple):
    """The output of a teacher."""

    logits: Tensor  # (B, T, V), over the student's ids
    layer_states: tuple[Tensor, ...]  # (B, T, width) after the layers that were asked for


class SharedIds(NamedTuple):
    """The token ids that student and teacher share."""

    size: int
    """Tokens of the student's tokenizer, V."""
    own_end: int | None
    """The id of an end of text that only the student has; None where the teacher knows every id."""


def shared_ids(tokenizer: Tokenizer, source: TeacherSource) -> SharedIds:
    """Compare the vocabularies by ids: each id of the student has to be the same token of the teacher.

    The teacher may have more tokens, and its embedding more rows. The student may have an end of text of its own, which
    `--tokenizer FILE` adds to a vocabulary without one; the end of text of the teacher takes its place there.

    Raises:
        UserError: An id is another token of the teacher, or none.
    """
    own, theirs = (each.get_vocab(with_added_tokens=True) for each in (tokenizer, source.tokenizer))
    size, by_id = vocabulary_size(tokenizer), {number: token for token, number in theirs.items()}
    wrong = [(number, token) for token, number in own.items() if by_id.get(number) != token]
    if not wrong:
        return SharedIds(size, None)
    if [token for _, token in wrong] == [EOS] and EOS not in theirs:
        return SharedIds(size, wrong[0][0])
    number, token = min(wrong)
    there = "none" if number not in by_id else repr(by_id[number])
    file = source.tokenizer_file
    cure = (
        f"train with its tokenizer: --tokenizer {file}"
        if file is not None
        else f"import it, and train with its tokenizer: adaptive import {source.name} --name teacher, then --teacher "
        "teacher --tokenizer runs/teacher/tokenizer.json"
    )
    raise UserError(
        f"the teacher {source.name} has another tokenizer: {len(wrong):,} of {len(own):,} token ids mean another "
        f"token there, the first of them {number}: {token!r} here, {there} there. Its outputs are probabilities of its "
        f"own tokens, so both need one vocabulary; {cure}"
    )


class Teacher:
    """A frozen model. It draws no random numbers, and changes none of the student's."""

    def __init__(self, source: TeacherSource, ids: SharedIds, device: torch.device, precision: str) -> None:
        """Read the weights; they are kept in float32.

        Raises:
            UserError: They do not fit the config of the model.
        """
        self.source, self.ids, self.device, self.precision = source, ids, device, precision
        with torch.random.fork_rng(devices=[]):
            model = Transformer(source.model)
        load_whole(model, source.state(), source.name)
        self.model = model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def answer(self, ids: Tensor, state_layers: Sequence[int] = ()) -> Answer:
        """Run the model on ids (B, T) of the student, at the thresholds of its controllers."""
        end = self.ids.own_end
        if end is not None:
            ids = torch.where(ids == end, self.source.end, ids)
        with autocast(self.device, self.precision):
            out = self.model(ids, state_layers=state_layers)
        logits = out.logits[..., : self.ids.size].float()  # (B, T, up to V)
        if end is not None:
            # Its end of text becomes ours; its own is no token of the text, and as unlikely as the least likely.
            missing = self.ids.size - logits.shape[-1]
            least = logits.amin(-1, keepdim=True)
            logits = torch.cat([logits, least.expand(*logits.shape[:-1], max(missing, 0))], -1).clone()
            logits[..., end] = logits[..., self.source.end]
            logits[..., self.source.end] = least[..., 0]
        return Answer(logits, out.layer_states)


@torch.no_grad()
def load_whole(model: Transformer, state: Mapping[str, Tensor | LazyTensor], name: str) -> None:
    """Copy weights and buffers into a model, one at a time.

    Raises:
        UserError: One is missing, left over, or of another shape.
    """
    own = model.state_dict()
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [each for each in own if each in state and tuple(own[each].shape) != tuple(state[each].shape)]
    if wrong:
        raise UserError(f"the weights of the teacher {name} are not those of its config: {wrong[0]}; restore the model")
    for each, value in own.items():
        tensor = state[each]
        value.copy_(tensor.read() if isinstance(tensor, LazyTensor) else tensor)
