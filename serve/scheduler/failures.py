"""What a client hears of an exception inside the engine."""

import logging

from ...contract.errors import UserError
from ..errors import BadRequestError, ServeError, UnavailableError

LOG = logging.getLogger("adaptive_lm.serve")
MEMORY_WORDS = ("bad_alloc", "bfcarena", "failed to allocate", "cannot allocate", "out of memory", "bad allocation")
"""How ONNX Runtime, the C++ library and CUDA say that memory ran out."""


def client_error(error: BaseException) -> ServeError:
    """Return the error for the client. What is inside the server goes to its log, not to the client."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, UserError):
        return BadRequestError(str(error))
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in MEMORY_WORDS):
        LOG.error("no memory for a request: %r", error)
        return UnavailableError(
            "found no memory for this request, expected some to be free; try again later, or send a shorter prompt",
            code="out_of_memory",
            headers={"Retry-After": "1"},
        )
    LOG.error("a request failed", exc_info=error)
    return ServeError("this request failed inside the server; its log says why; try again, or report it")
