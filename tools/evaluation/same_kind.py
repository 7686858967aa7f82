"""Exemplars of the question's own kind: SciEval's development set is sorted, so its first five are of one kind."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler

from data_mixers.errors import DataError
from tools.evaluation.science import kind


class OfSameKind(ContextSampler):
    """The first n of the rows that have the kind of the item asked about."""

    def __init__(self, df: Sequence[dict[str, Any]] | None = None, **settings: Any) -> None:
        super().__init__(df, **settings)
        self._doc: dict[str, Any] | None = None

    def follow(self, task: Any) -> None:
        """Hear of each item before its exemplars are drawn: the harness tells a sampler of none."""
        worded = task.fewshot_context

        def fewshot_context(doc: dict[str, Any], *args: Any, **settings: Any) -> Any:
            self._doc = doc
            return worded(doc, *args, **settings)

        task.fewshot_context = fewshot_context

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **settings: Any) -> list[dict[str, Any]]:
        """Errors: DataError if there are fewer."""
        assert self._doc is not None  # `follow` was called
        wanted = kind(self._doc)
        found = [row for row in self.df if kind(row) == wanted][:n]
        if len(found) < n:
            raise DataError(
                f"the development set holds {len(found)} exemplars of {', '.join(map(str, wanted[:3]))}, {n} are asked "
                "for; lower the benchmark's shots, or give the set's own files"
            )
        return found
