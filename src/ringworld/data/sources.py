"""What a recipe says about its data: typed configurations, each of which builds its source from what it is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ringworld.data.book_qa import BookQuestionsConfig
from ringworld.data.corpora import Part, held_out, texts_of
from ringworld.data.documents import Document, Given, Source, TextDocuments, read_text_folder
from ringworld.data.facts import FactQuestionsConfig
from ringworld.data.film_qa import FilmQuestionsConfig
from ringworld.data.jsonl import read_jsonl
from ringworld.data.multimodal import ShardDocuments
from ringworld.data.needle_words import Template, chat_phrases, phrases
from ringworld.data.needles import DIGITS, Form, Haystack, NeedleSource
from ringworld.data.passing import PassingConfig
from ringworld.data.reach import ReachingDocuments
from ringworld.data.worlds import WorldSourceConfig, world_sentences
from ringworld.errors import UserError
from ringworld.tokens.chat import LWM_TEMPLATE
from ringworld.tokens.text import TextTokenizer, train_tokenizer
from ringworld.tokens.vision import MINUTE_MARKS, VISION_END, VISION_START
from ringworld.worlds.shapes import THINGS


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer: read from `path` (what a run folder's tokenizer.json is), or else trained.

    Attributes:
        size: ids that it is trained to, on the train part of `corpora`
        sentences: and so many about the shapes world.
        wording: it takes in the needle wording, one id a phrase and a city. "chat": that of conversations in LWM's
            layout, which the tokenizer then has as its chat template, the marks of vision and of the minutes of an
            hour, and the things of the shapes world ("large red ring"), one id each.
    """

    size: int = 1024
    corpora: tuple[str, ...] = ("essays",)
    wording: bool | Literal["chat"] = True
    path: str | None = None
    sentences: int = 0

    def build(self) -> TextTokenizer:
        """Raises UserError when the file or a corpus cannot be had."""
        if self.path is not None:
            return TextTokenizer.load(self.path)
        texts = [*texts_of(self.corpora, "train"), *world_sentences(self.sentences)]
        if self.wording == "chat":
            things = (f" {thing}" for thing in THINGS)
            marks = (*MINUTE_MARKS, VISION_START, VISION_END)
            marked = train_tokenizer(texts, self.size, (*chat_phrases(), *marks, *things))
            return TextTokenizer(marked.inner, marked.vocabulary, LWM_TEMPLATE)
        return train_tokenizer(texts, self.size, phrases() if self.wording else ())


@dataclass(frozen=True)
class NeedleSourceConfig:
    """Needles in the prose of `corpora`, in documents of `length` tokens, or as long as the stage's rows, or of random
    lengths from `shortest` up to that; see `NeedleSource`."""

    corpora: tuple[str, ...] = ("essays",)
    needles: int = 1
    asked: int | None = None
    form: Form = "turns"
    template: Template = "lwm"
    prose_weight: float = 0.1
    digits: int = DIGITS
    length: int | None = None
    shortest: int | None = None

    def build(self, given: Given) -> Source:
        return NeedleSource(
            _haystack(given.tokenizer, self.corpora, given.part),
            self.length or given.sequence_length,
            needles=self.needles,
            asked=self.asked,
            form=self.form,
            template=self.template,
            prose_weight=self.prose_weight,
            digits=self.digits,
            shortest=self.shortest,
            seed=given.seed,
        )


@lru_cache(maxsize=4)
def _haystack(tokenizer: TextTokenizer, corpora: tuple[str, ...], part: Part) -> Haystack:
    """A stage has dozens of sources of the same prose, which takes seconds to encode."""
    return Haystack(tokenizer, texts_of(corpora, part))


@dataclass(frozen=True)
class CorpusConfig:
    """The texts of `corpora`, a document each."""

    corpora: tuple[str, ...] = ("essays",)

    def build(self, given: Given) -> Source:
        return TextDocuments(texts_of(self.corpora, given.part), given.tokenizer)


@dataclass(frozen=True)
class TextFolderConfig:
    """Every *.txt below the folder `path`, a document each; some are held out, by their names."""

    path: str

    def build(self, given: Given) -> Source:
        folder = read_text_folder(self.path, given.tokenizer)
        names = [str(path.relative_to(self.path)) for path in folder.paths]
        return _Part(folder, names, [path.stat().st_size for path in folder.paths], given.part, self.path)


@dataclass(frozen=True)
class JsonlConfig:
    """The documents of the file `path`, one a line; some are held out, by their numbers."""

    path: str
    bad_share: float = 0.01

    def build(self, given: Given) -> Source:
        documents = read_jsonl(self.path, given.tokenizer, bad_share=self.bad_share)
        names = [str(index) for index in range(len(documents))]
        return _Part(documents, names, documents.sizes.tolist(), given.part, self.path)


@dataclass(frozen=True)
class ShardsConfig:
    """The documents that `tokenize` wrote into the folder `path`; some are held out, by their numbers.

    `swap` and `drop_text` are probabilities, `every` is in seconds: see `ShardDocuments`.
    """

    path: str
    swap: float = 0.0
    drop_text: float = 0.0
    every: int | None = None

    def build(self, given: Given) -> Source:
        documents = ShardDocuments(
            self.path,
            given.tokenizer,
            swap=self.swap,
            drop_text=self.drop_text,
            every=self.every,
            seed=given.seed,
            frames=given.frames,
        )
        # Their sizes are not asked for: that would be to read all of them before training begins.
        names = [str(index) for index in range(len(documents))]
        return _Part(documents, names, [1] * len(documents), given.part, self.path)


@dataclass(frozen=True)
class ReachConfig:
    """The documents of another source, with up to `gaps` gaps in their positions, so that they reach up to `reach` of
    them: see `ReachingDocuments`. Of several each is small, and great distances are rare (docs/results.md)."""

    source: "SourceConfig"
    reach: int
    gaps: int = 1

    def build(self, given: Given) -> Source:
        source = self.source.build(given)
        return ReachingDocuments(
            source, reach=self.reach, gaps=self.gaps, text_size=given.tokenizer.vocabulary.text_size, seed=given.seed
        )


SourceConfig = (
    NeedleSourceConfig
    | CorpusConfig
    | TextFolderConfig
    | JsonlConfig
    | ShardsConfig
    | WorldSourceConfig
    | BookQuestionsConfig
    | FactQuestionsConfig
    | FilmQuestionsConfig
    | PassingConfig
    | ReachConfig
)


def draws_unasked(source: object) -> bool | None:
    """Whether a source has pictures or films that no words ask for, which is what guidance draws away from; None:
    nobody knows."""
    match source:
        case ReachConfig():
            return draws_unasked(source.source)
        case ShardsConfig():
            return True if source.swap or source.drop_text else None
        case WorldSourceConfig():
            return source.task == "draw" and source.without_words > 0
        case NeedleSourceConfig() | CorpusConfig() | TextFolderConfig():
            return False
        case _:
            return None


class _Part:
    """The documents of a source that are trained on, or the ones held out."""

    def __init__(self, source: Source, names: Sequence[str], sizes: Sequence[int], part: Part, path: str) -> None:
        self._source = source
        out = held_out(names, sizes)
        self._indices = [index for index in range(len(source)) if out[index] == (part == "heldout")]
        if not self._indices:
            raise UserError(
                f"of the {len(source)} documents of {path} none is small enough to be held out; give it at least five, "
                "of about the same size"
            )

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Document:
        return self._source[self._indices[index]]
