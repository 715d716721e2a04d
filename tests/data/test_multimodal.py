import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.models import frame_tokenizer
from ringworld.data.documents import Document, Given
from ringworld.data.multimodal import ShardDocuments, model_spans, vision_spans
from ringworld.data.packing import frame, pack_row
from ringworld.data.sources import ShardsConfig
from ringworld.data.tokenized import MarkSpan, TextSpan, TokenizedDocument, TokenizedSpan, VisionSpan, write_shard
from ringworld.errors import UserError
from ringworld.tokens.chat import ChatTemplate, Message, Role
from ringworld.tokens.text import train_tokenizer
from ringworld.tokens.vision import vision_ids, visions
from ringworld.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    text_size=280, bos=1, eos=2, pad=0, codes=16, vision_size=20, vision_start=(270, 271), vision_end=(272,),
    frame_height=2, frame_width=3,
)  # fmt: skip
TEXT = train_tokenizer(["a red circle"], 280)
TOKENIZER = TEXT.of(VOCABULARY)


def codes(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 16, (frames, 2, 3)).astype(np.int32)


def film(frames: int, fps: float | None = 1.0, trained: bool | float | None = None) -> VisionSpan:
    return VisionSpan(codes(frames), fps, trained)


def picture(trained: bool | float | None = None) -> VisionSpan:
    return film(1, None, trained)


def shards(folder: Path, *documents: tuple[TokenizedSpan, ...], each: int = 3) -> Path:
    made = [TokenizedDocument(f"films/{number}.mp4", spans) for number, spans in enumerate(documents)]
    for first in range(0, len(made), each):
        write_shard(folder / f"documents-{first:05}.array_record", made[first : first + each])
    return folder


def say(document: Document) -> str:
    """Text as text, each frame as "#", eov as "|", and `<vision>` and `</vision>` as such."""
    said = ""
    for span in document.spans:
        ids = span.ids.tolist()
        if span.modality == "vision":
            assert min(ids) >= VOCABULARY.text_size
            ends = ids[VOCABULARY.codes_per_frame :: VOCABULARY.codes_per_frame + 1]
            assert set(ends[:-1]) <= {VOCABULARY.eof}
            assert ends[-1] == VOCABULARY.eov
            said += "#" * len(ends) + "|"
        elif ids in ([270, 271], [272]):
            said += "<vision>" if len(ids) == 2 else "</vision>"
        else:
            said += TOKENIZER.decode(ids)
    return said


def test_a_vision_is_what_the_vocabulary_says() -> None:
    spans = vision_spans(codes(3), 0.5, VOCABULARY)
    assert [span.modality for span in spans] == ["text", "vision", "text"]
    assert Document(spans).tokens.tolist() == vision_ids(codes(3), VOCABULARY).tolist()
    assert set(Document(spans).weights.tolist()) == {0.5}


def test_documents_in_a_models_ids(tmp_path: Path) -> None:
    folder = shards(tmp_path, (TextSpan("a red "), film(2), TextSpan("circle"), picture()), (TextSpan("red"),), each=1)
    documents = ShardDocuments(folder, TOKENIZER)
    assert [say(documents[index]) for index in range(len(documents))] == [
        "a red <vision>##|</vision>circle<vision>#|</vision>",
        "red",
    ]
    assert set(documents[0].weights.tolist()) == {1.0}
    found = list(visions(documents[0].tokens, VOCABULARY))
    assert [vision.codes.tolist() for vision in found] == [codes(2).tolist(), codes(1).tolist()]


def test_weights_are_the_spans(tmp_path: Path) -> None:
    folder = shards(tmp_path, (TextSpan("red"), picture(trained=0.25), TextSpan("circle", trained=True)))
    spans = ShardDocuments(folder, TOKENIZER)[0].spans
    assert [span.weight for span in spans] == [0.0, 0.25, 0.25, 0.25, 1.0]


def test_swapping_gives_both_orders_the_same_in_every_pass(tmp_path: Path) -> None:
    pair = (TextSpan("red"), film(2))
    folder = shards(tmp_path, *[pair] * 60, (TextSpan("red"), film(2), TextSpan("circle")), each=30)
    documents = ShardDocuments(folder, TOKENIZER, swap=0.5, seed=3)
    said = [say(documents[index]) for index in range(61)]
    assert set(said[:60]) == {"red<vision>##|</vision>", "<vision>##|</vision>red"}
    assert 20 < said.count("red<vision>##|</vision>") < 40
    assert said[60] == "red<vision>##|</vision>circle"
    again = ShardDocuments(folder, TOKENIZER, swap=0.5, seed=3)
    assert [say(again[index]) for index in reversed(range(61))] == said[::-1]
    other = ShardDocuments(folder, TOKENIZER, swap=0.5, seed=4)
    assert [say(other[index]) for index in range(61)] != said


def test_what_is_learned_stays_in_its_place_when_a_pair_is_swapped(tmp_path: Path) -> None:
    folder = shards(tmp_path, (picture(), TextSpan("red", trained=True)))
    document = ShardDocuments(folder, TOKENIZER, swap=1.0)[0]
    assert say(document) == "red<vision>#|</vision>"
    assert [span.weight for span in document.spans] == [0.0, 1.0, 1.0, 1.0]


def test_texts_are_left_out_of_pairs_that_come_text_first(tmp_path: Path) -> None:
    pair, other = (TextSpan("red"), picture()), (picture(), TextSpan("red"))
    folder = shards(tmp_path, *[pair] * 100, other, (TextSpan("red"),), (film(1), film(2)), each=50)
    documents = ShardDocuments(folder, TOKENIZER, drop_text=0.25)
    said = [say(documents[index]) for index in range(len(documents))]
    assert 10 < said.count("<vision>#|</vision>") < 40
    assert set(said[:100]) == {"<vision>#|</vision>", "red<vision>#|</vision>"}
    assert said[100:] == ["<vision>#|</vision>red", "red", "<vision>#|</vision><vision>##|</vision>"]
    always = ShardDocuments(folder, TOKENIZER, drop_text=1.0, swap=1.0)
    assert say(always[0]) == "<vision>#|</vision>red"
    assert say(always[100]) == "<vision>#|</vision>"
    assert frame(always[100], VOCABULARY).tokens[:3].tolist() == [1, 270, 271]


@pytest.mark.parametrize(
    ("frames", "fps", "every", "expected"),
    [
        (5, 1.0, 2, "## 0:00 ## 0:02 # 0:04"),
        (4, 1.0, 2, "## 0:00 ## 0:02"),
        (2, 1.0, 2, "## 0:00"),
        (3, 0.5, 60, "### 0:00"),
        (3, 1 / 75, 75, "# 0:00 # 1:15 # 2:30"),
        (4, 1 / 75, 1, "# 0:00 # 1:15 # 2:30 # 3:45"),  # at 225 s, and 3 / (1 / 75) is less by a rounding
        (2, 1 / 4000, 10, "# 0:00 # 66:40"),  # no clocks for parts without a frame
        (6, 2.5, 1, "### 0:00 ## 0:01 # 0:02"),
        (4, 30000 / 1001, 1, "#### 0:00"),
    ],
)
def test_the_time_stands_behind_each_part_of_a_film(
    tmp_path: Path, frames: int, fps: float, every: int, expected: str
) -> None:
    folder = shards(tmp_path, (film(frames, fps, trained=0.5), TextSpan("red")))
    document = ShardDocuments(folder, TOKENIZER, every=every)[0]
    parts = re.sub(r"(#+) (\S+) ?", r"<vision>\1|</vision> \2", expected)
    assert say(document) == f"{parts}red"
    assert {span.weight for span in document.spans[:-1]} == {0.5}
    shown = np.concatenate([vision.codes for vision in visions(document.tokens, VOCABULARY)])
    assert shown.tolist() == codes(frames).tolist()


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 40), st.sampled_from([0.3, 1.0, 2.0, 23.976, 29.97]), st.integers(1, 7))
def test_every_frame_comes_before_its_clock(frames: int, fps: float, every: int) -> None:
    seen, told = 0, 0
    for span in model_spans(VisionSpan(codes(frames), fps), 1.0, TOKENIZER, every):
        if span.modality == "text" and ":" in (text := TOKENIZER.decode(span.ids)):
            minutes, seconds = text.removeprefix("</vision>").split("<")[0].split(":")
            clock = 60 * int(minutes) + int(seconds)
            assert all(clock - 1e-6 <= number / fps < clock + every for number in range(told, seen))
            told = seen
        elif span.modality == "vision":
            seen += len(span.ids) // 7
    assert told == seen == frames


def test_a_picture_has_no_clock_and_a_film_without_fps_is_refused(tmp_path: Path) -> None:
    assert say(ShardDocuments(shards(tmp_path / "a", (picture(),)), TOKENIZER, every=1)[0]) == "<vision>#|</vision>"
    folder = shards(tmp_path / "b", (film(2, None),))
    with pytest.raises(UserError, match=r"made of films/0.mp4, has a film of 2 frames that does not say its fps"):
        ShardDocuments(folder, TOKENIZER, every=1)


def said_by(role: Role, span: TextSpan | VisionSpan) -> TokenizedSpan:
    return (
        TextSpan(span.text, None, role) if isinstance(span, TextSpan) else VisionSpan(span.codes, span.fps, None, role)
    )


DRAWING = (said_by("user", TextSpan("a red circle")), said_by("assistant", picture()))
ASKING = (said_by("user", TextSpan("red?\n")), said_by("user", film(2)), said_by("assistant", TextSpan("a circle")))


def test_conversations_are_what_the_template_makes_of_them(tmp_path: Path) -> None:
    documents = ShardDocuments(shards(tmp_path, DRAWING, ASKING), TOKENIZER)
    template = ChatTemplate(TOKENIZER)
    drawn, shown = vision_ids(codes(1), VOCABULARY), vision_ids(codes(2), VOCABULARY)
    expected: list[list[Message]] = [
        [{"role": "user", "content": "a red circle"}, {"role": "assistant", "content": [drawn]}],
        [{"role": "user", "content": ["red?\n", shown]}, {"role": "assistant", "content": "a circle"}],
    ]
    for index, messages in enumerate(expected):
        assert documents[index].tokens.tolist() == template.encode(messages)
        asked = template.encode(messages[:1], add_generation_prompt=True)
        weights = documents[index].weights
        assert weights[: len(asked)].tolist() == [0] * len(asked)
        assert weights[len(asked) :].tolist() == pytest.approx(
            [1 / (len(weights) - len(asked))] * len(weights[len(asked) :])
        )


def test_words_are_left_out_of_conversations_that_ask_for_a_vision_alone(tmp_path: Path) -> None:
    more = (*DRAWING, said_by("assistant", TextSpan("there")))
    again = (*DRAWING, *DRAWING)
    like = (said_by("user", picture()), *DRAWING)
    alone = DRAWING[1:]
    folder = shards(tmp_path, *[DRAWING] * 80, ASKING, more, again, like, alone, each=50)
    documents = ShardDocuments(folder, TOKENIZER, drop_text=0.25, seed=1)
    bare = [VOCABULARY.bos, *vision_ids(codes(1), VOCABULARY), VOCABULARY.eos]
    dropped = [documents[index].tokens.tolist() == bare for index in range(80)]
    assert 8 < sum(dropped) < 32
    assert dropped == [documents[index].tokens.tolist() == bare for index in range(80)]
    first = documents[dropped.index(True)]
    assert first.weights[:3].tolist() == [0, 0, 0]
    assert first.weights.sum() == pytest.approx(1)
    always, never = (ShardDocuments(folder, TOKENIZER, drop_text=share) for share in (1.0, 0.0))
    for index in range(80, 84):
        assert always[index].tokens.tolist() == never[index].tokens.tolist()
    assert never[84].tokens.tolist() == bare


def test_a_conversation_of_which_a_part_is_nobodys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"document 0 of .* is a conversation in which nobody says one of its spans"):
        ShardDocuments(shards(tmp_path, (*DRAWING, TextSpan("red"))), TOKENIZER)


def test_marks_are_tokens_where_they_stand(tmp_path: Path) -> None:
    spans = (TextSpan("red", False), MarkSpan("eos", True), MarkSpan("bos", False), TextSpan("a", True))
    document = ShardDocuments(shards(tmp_path, spans), TOKENIZER)[0]
    red, a = TOKENIZER.encode("red"), TOKENIZER.encode("a")
    assert document.tokens.tolist() == [*red, VOCABULARY.eos, VOCABULARY.bos, *a]
    assert document.weights.tolist() == [0.0] * len(red) + [1.0, 0.0] + [1.0] * len(a)


def test_shards_of_another_tokenizer_of_frames_are_refused(tmp_path: Path) -> None:
    """Its codes may all be possible, and mean something else."""
    folder, frames = shards(tmp_path, (picture(),)), frame_tokenizer()
    for said in (None, {"tokenizer": frames.fingerprint}, {"tokenizer": None}, "not an object"):
        if said is not None:
            (folder / "tokenize.json").write_text(json.dumps(said))
        assert len(ShardDocuments(folder, TOKENIZER, frames=frames)) == 1
    (folder / "tokenize.json").write_text(json.dumps({"tokenizer": "0123"}))
    with pytest.raises(UserError, match=f"another tokenizer of frames than the model's made {folder}, so its codes"):
        ShardsConfig(str(folder)).build(Given(TOKENIZER, 64, 0, frames=frames))
    assert len(ShardsConfig(str(folder)).build(Given(TOKENIZER, 64, 0))) == 1


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (VisionSpan(np.zeros((1, 3, 2), np.int32)), "has frames of 3x2 codes, and those of the model's .* are 2x3"),
        (VisionSpan(np.full((1, 2, 3), 16, np.int32)), "has the code 16, and those of the model's .* are 0 to 15"),
        (VisionSpan(np.zeros((0, 2, 3), np.int32)), "has vision without a frame"),
        (TextSpan("red", "yes"), "has \"trained\" 'yes': it must be true, false or a number"),
        (TextSpan("red", -1.0), 'has "trained" -1.0'),
    ],
)
def test_what_does_not_fit_the_vocabulary_is_refused(tmp_path: Path, span: TextSpan | VisionSpan, message: str) -> None:
    folder = shards(tmp_path, (TextSpan("red"),), (span,))
    with pytest.raises(UserError, match=f"document 1 of {tmp_path}, made of films/1.mp4, {message}"):
        ShardDocuments(folder, TOKENIZER)


def test_a_vocabulary_without_vision_takes_text_alone(tmp_path: Path) -> None:
    text, both = shards(tmp_path / "a", (TextSpan("red"),)), shards(tmp_path / "b", (TextSpan("red"), picture()))
    assert TEXT.decode(ShardDocuments(text, TEXT)[0].tokens) == "red"
    with pytest.raises(UserError, match="has vision, but the model's vocabulary has none"):
        ShardDocuments(both, TEXT)


def test_a_document_that_was_not_looked_at_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    bad = (VisionSpan(np.full((1, 2, 3), 99, np.int32)),)
    documents = ShardDocuments(shards(tmp_path, *[(picture(),)] * 70, bad, *[(picture(),)] * 70, each=80), TOKENIZER)
    assert say(documents[69]) == "<vision>#|</vision>"
    with pytest.raises(UserError, match=r"document 70 of .* has the code 99"):
        documents[70]


def test_options_out_of_their_range(tmp_path: Path) -> None:
    folder = shards(tmp_path, (picture(),))
    with pytest.raises(UserError, match=r"swap must be 0 to 1, a probability; got 1.5"):
        ShardDocuments(folder, TOKENIZER, swap=1.5)
    with pytest.raises(UserError, match=r"drop_text must be 0 to 1, a probability; got -0.1"):
        ShardDocuments(folder, TOKENIZER, drop_text=-0.1)
    with pytest.raises(UserError, match="every must be 1 or more, in seconds, or None for no clock; got 0"):
        ShardDocuments(folder, TOKENIZER, every=0)
    with pytest.raises(UserError, match="there are no tokenised documents in"):
        ShardDocuments(tmp_path / "missing", TOKENIZER)


def test_the_configuration_holds_some_out(tmp_path: Path) -> None:
    folder = shards(tmp_path, *[(TextSpan(str(number)), picture()) for number in range(10)])
    config = ShardsConfig(str(folder), swap=1.0)
    said = {}
    for part in ("train", "heldout"):
        source = config.build(Given(TOKENIZER, 64, 5, part))
        said[part] = [say(source[index]) for index in range(len(source))]
    assert (len(said["train"]), len(said["heldout"])) == (8, 2)
    assert sorted(said["train"] + said["heldout"]) == [f"<vision>#|</vision>{number}" for number in range(10)]


def test_a_row_of_pairs_has_the_weights_by_modality(tmp_path: Path) -> None:
    folder = shards(tmp_path, (TextSpan("red"), film(3)), (film(2), TextSpan("a red circle")))
    documents = ShardDocuments(folder, TOKENIZER)
    row = pack_row([(frame(documents[i], VOCABULARY), 0) for i in range(2)], 128, VOCABULARY, "modality")
    targets, weights = row[1], row[4]
    for part in VOCABULARY.modalities:
        mine = weights[(targets >= part.start) & (targets < part.stop)]
        assert mine.sum() == pytest.approx(0.5)
        assert len(set(mine[mine > 0].tolist())) == 1
