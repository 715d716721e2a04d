"""The grammar of a sequence: which ids may come next, so that what is written can always be read.

    text -> <vision> -> codes of a frame -> eof (another frame) | eov -> </vision> -> text

A small automaton over ids, as data for compiled functions: it runs inside the decoding step, so the model itself
chooses when to speak and when to draw. Text that spells `<vision>` (LWM's is three ordinary pieces) opens a vision.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Integer

from ringworld.errors import UserError
from ringworld.tokens.vocabulary import Vocabulary

ANY = 1 << 30  # frames: as many as the model likes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Place:
    """Where each row stands in the grammar.

    `state` counts through it: 0 is text, k that k pieces of `<vision>` were written; from there the codes of a frame,
    one state each, the frame that waits for its terminator, and the pieces of `</vision>`. `frames` is the number of
    whole frames in the vision that is open.
    """

    state: Int32[Array, " B"]
    frames: Int32[Array, " B"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grammar:
    """The rules for one vocabulary. Made by `Grammar.build`."""

    text: Bool[Array, " V"]  # ids that may come in text
    pieces: Int32[Array, " n"]  # of <vision>
    matched: Int32[Array, "n n"]  # [k, j]: how many are matched when piece j comes after k matched ones
    closing: Int32[Array, " m"]  # the pieces of </vision>
    codes: Int32[Array, ""]  # the first code's id; they end where eof begins
    eof: Int32[Array, ""]
    eov: Int32[Array, ""]
    per_frame: Int32[Array, ""]  # codes of a frame
    least: Int32[Array, ""]  # frames of a vision
    most: Int32[Array, ""]

    @classmethod
    def build(
        cls, text: Bool[np.ndarray, " V"], vocabulary: Vocabulary, *, least: int = 1, most: int = ANY
    ) -> "Grammar":
        """The grammar of a vocabulary; of one without vision it is text alone.

        Args:
            text: the ids that may come in text.
            least, most: frames of a vision.

        Raises:
            UserError: limits that no film can keep.
        """
        if not 1 <= least <= most:
            asked = f"{most}" if least == most else f"{least} to {most}"
            raise UserError(f"{asked} frames were asked for: a picture has 1, a film 1 or more")
        sees = bool(vocabulary.vision_size)
        pieces = np.array(vocabulary.vision_start if sees else (-1,), np.int32)
        return cls(
            text=jnp.asarray(text),
            pieces=jnp.asarray(pieces),
            matched=jnp.asarray(_matched(pieces)),
            closing=jnp.asarray(vocabulary.vision_end if sees else (-1,), jnp.int32),
            codes=jnp.int32(vocabulary.text_size),
            eof=jnp.int32(vocabulary.eof if sees else -1),
            eov=jnp.int32(vocabulary.eov if sees else -1),
            per_frame=jnp.int32(vocabulary.codes_per_frame),
            least=jnp.int32(least),
            most=jnp.int32(most),
        )

    def allowed(self, place: Place) -> Bool[Array, "B V"]:
        """The ids that may come next in each row."""
        ids = jnp.arange(self.text.shape[0], dtype=jnp.int32)[None]
        state, frames = place.state[:, None], place.frames[:, None]
        opened, full = self._bounds
        codes = (ids >= self.codes) & (ids < self.eof)
        ends = ((ids == self.eof) & (frames + 1 < self.most)) | ((ids == self.eov) & (frames + 1 >= self.least))
        closing = ids == self.closing[jnp.maximum(state - full - 1, 0)]
        return jnp.where(
            state < opened,
            self.text[None],
            jnp.where(state < full, codes, jnp.where(state == full, ends, closing)),
        )

    def advance(self, place: Place, token: Int32[Array, " B"]) -> Place:
        """Where each row stands after its token, which has to be an allowed one."""
        state = place.state
        opened, full = self._bounds
        is_piece = token[:, None] == self.pieces[None]
        matched = self.matched[jnp.minimum(state, opened - 1), jnp.argmax(is_piece, axis=1)]
        in_text = jnp.where(is_piece.any(axis=1), matched, 0)
        closed = full + self.closing.shape[0]
        beyond = jnp.where(state == closed, 0, jnp.where((state == full) & (token == self.eof), opened, state + 1))
        return Place(
            state=jnp.where(state < opened, in_text, beyond).astype(jnp.int32),
            frames=jnp.where(state < opened, 0, place.frames + (state == full)).astype(jnp.int32),
        )

    @property
    def _bounds(self) -> tuple[int, Array]:
        """The state of a frame without codes yet, and that of a frame that waits for its terminator. Below the first is
        text, beyond the second the pieces of `</vision>`."""
        return self.pieces.shape[0], self.pieces.shape[0] + self.per_frame

    def after(self, ids: Integer[np.ndarray, " S"]) -> tuple[int, int]:
        """The state and the frames (see `Place`) after a prompt. Raises UserError as `Reader.read`."""
        reader = Reader(self)
        for token in ids.tolist():
            reader.read(token)
        return reader.state, reader.frames


class Reader:
    """The same rules on the host, for a sequence that is read token by token.

    Attributes:
        state, frames: as in `Place`.
        read_so_far: tokens.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._pieces: list[int] = grammar.pieces.tolist()
        self._matched: list[list[int]] = grammar.matched.tolist()
        self._closing: list[int] = grammar.closing.tolist()
        self._codes = range(int(grammar.codes), int(grammar.eof))
        self._eov = int(grammar.eov)
        self._full = len(self._pieces) + int(grammar.per_frame)
        self.state = self.frames = self.read_so_far = 0

    def read(self, token: int) -> None:
        """Raises UserError, which says where, when the token may not come here."""
        state, pieces = self.state, self._pieces
        if state < len(pieces):
            if token >= self._codes.start:
                raise self._wrong(token, "is vision outside of <vision>")
            self.state = self._matched[state][pieces.index(token)] if token in pieces else 0
            self.frames = 0
        elif state < self._full:
            if token not in self._codes:
                raise self._wrong(token, "is no code, and its frame is not whole")
            self.state += 1
        elif state == self._full:
            if token not in (self._codes.stop, self._eov):
                raise self._wrong(token, "does not end a frame, which is whole")
            self.state, self.frames = (state + 1 if token == self._eov else len(pieces)), self.frames + 1
        else:
            if token != self._closing[state - self._full - 1]:
                raise self._wrong(token, "does not close the vision, which has ended")
            self.state = 0 if state == self._full + len(self._closing) else state + 1
        self.read_so_far += 1

    @property
    def opening(self) -> int:
        """How many of the last tokens may be the beginning of `<vision>`: text, if nothing comes of it."""
        return self.state if self.state < len(self._pieces) else 0

    @property
    def in_text(self) -> bool:
        return self.state < len(self._pieces)

    def _wrong(self, token: int, why: str) -> UserError:
        return UserError(f"token {self.read_so_far} of the prompt, {token}, {why}")


def _matched(pieces: np.ndarray) -> np.ndarray:
    """[k, j]: how many pieces are matched when piece j comes after k of them were: the longest beginning of the pieces
    that the text then ends with."""
    found = np.zeros((len(pieces), len(pieces)), np.int32)
    for k in range(len(pieces)):
        for j, piece in enumerate(pieces):
            text = [*pieces[:k], piece]
            found[k, j] = next(n for n in range(k + 1, -1, -1) if text[len(text) - n :] == [*pieces[:n]])
    return found
