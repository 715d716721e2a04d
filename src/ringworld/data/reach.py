"""Documents whose positions skip ahead, so that a short one teaches the distances of a long one.

What a model does between two tokens depends on how far apart their positions are, and nothing says that there must be
a token at each position between them. A document of 2K tokens with gaps in its positions has tokens 60K apart, at the
cost of 2K (PoSE, Zhu et al., arXiv 2309.10400).
"""

from dataclasses import replace

import numpy as np

from ringworld.data.documents import Document, Source


class ReachingDocuments:
    """The documents of a source with gaps in their positions. Document i depends on (seed, i) and the source alone.

    Args:
        reach: positions are below this; a document of as many tokens stays as it is. How much of it is used differs
            from document to document, evenly.
        gaps: there are 1 to so many, at random text tokens, so that frames keep together.
        text_size: ids below it are text.
    """

    def __init__(self, source: Source, *, reach: int, gaps: int, text_size: int, seed: int) -> None:
        if reach < 1 or gaps < 1:
            raise ValueError(f"documents reach 1 position or more, with 1 gap or more; got {reach} and {gaps}")
        self._source, self._reach, self._gaps = source, reach, gaps
        self._text_size, self._seed = text_size, seed

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Document:
        document = self._source[index]
        random = np.random.default_rng((self._seed, index, *b"reach"))
        (before,) = np.nonzero(document.tokens[1:] < self._text_size)  # places behind which a text token stands
        room = self._reach - len(document)
        if room < 1 or not len(before):
            return document
        gaps = min(int(random.integers(1, self._gaps + 1)), len(before))
        # As many positions in all as are drawn here, in parts of random sizes.
        ends = np.sort(random.integers(random.integers(room + 1) + 1, size=gaps))
        skipped = np.zeros(len(document), np.int32)
        skipped[random.permutation(before)[:gaps] + 1] = np.diff(ends, prepend=0)
        return replace(document, positions=np.cumsum(skipped + 1, dtype=np.int32) - np.int32(1))
