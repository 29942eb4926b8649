"""`response_format` to grammars: one compiler for each model."""

import threading
from collections.abc import Callable

from ...contract.errors import UserError
from ...runtime.generation.sampling.mask import Grammar
from ...runtime.structured.compiler import BusyError, Compiler
from ...runtime.structured.constraint import Constraint
from ..errors import BadRequestError, UnavailableError
from ..scheduler.job import ModelInfo
from .openai.format import GrammarFormat, RegexFormat, ResponseFormat, SchemaFormat, TextFormat


class Grammars:
    """The compilers of a server's models, made when first needed. May be used from any thread; a call may block."""

    def __init__(self) -> None:
        self._compilers: dict[str, Compiler] = {}
        self._lock = threading.Lock()

    def compile(self, format: ResponseFormat | None, model: ModelInfo) -> Grammar | None:
        """Return what the text must match; None for any text.

        Raises:
            BadRequestError: It is not valid, too complex, or the library is missing.
            UnavailableError: Too many wait to be compiled.
        """
        if format is None or isinstance(format, TextFormat):
            return None
        return self._compiled(lambda: constraint_of(format), model, "response_format")

    def lark(self, source: str, model: ModelInfo, param: str) -> Grammar:
        """Return a grammar that the field `param` asks for.

        Raises:
            BadRequestError: It is not valid, too complex, or the library is missing.
            UnavailableError: Too many wait to be compiled.
        """
        return self._compiled(lambda: Constraint.grammar(source), model, param)

    def _compiled(self, constraint: Callable[[], Constraint], model: ModelInfo, param: str) -> Grammar:
        try:
            with self._lock:
                compiler = self._compilers.get(model.name)
                if compiler is None:
                    compiler = self._compilers[model.name] = Compiler(model.tokenizer)
            grammar: Grammar = compiler.compile(constraint())
        except BusyError as error:
            raise UnavailableError(str(error), param=param, headers={"Retry-After": "3"}) from None
        except UserError as error:
            raise BadRequestError(str(error), param=param) from None
        return grammar

    def close(self) -> None:
        """End the processes of the compilers."""
        with self._lock:
            for compiler in self._compilers.values():
                compiler.close()
            self._compilers.clear()


def constraint_of(format: ResponseFormat) -> Constraint:
    """Return a format as the runtime takes it.

    Raises:
        UserError: It cannot be one.
    """
    if isinstance(format, SchemaFormat):
        return Constraint.json_schema(format.json_schema.schema_)
    if isinstance(format, RegexFormat):
        return Constraint.regex(format.regex)
    if isinstance(format, GrammarFormat):
        return Constraint.grammar(format.grammar)
    return Constraint.json_object()
