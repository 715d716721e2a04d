import json
from dataclasses import replace

import pytest

from ringworld.tokens.vocabulary import LWM, Vocabulary

TEXT = Vocabulary(text_size=300, bos=1, eos=2, pad=0)


def test_lwm_has_the_released_layout() -> None:
    assert (LWM.size, LWM.eof, LWM.eov, LWM.codes_per_frame) == (40448, 40192, 40193, 256)
    assert LWM.modalities == (slice(0, 32000), slice(32000, 40448))


def test_text_alone_has_one_modality_and_no_vision_ids() -> None:
    assert TEXT.size == 300
    assert TEXT.modalities == (slice(0, 300),)
    with pytest.raises(ValueError, match="this vocabulary has no vision, so no eof"):
        _ = TEXT.eof
    with pytest.raises(ValueError, match="so no eov"):
        _ = TEXT.eov


def test_vision_is_put_behind_a_text_and_taken_away() -> None:
    text = Vocabulary(text_size=32000, bos=1, eos=2, pad=0)
    assert text.seeing(8192, 16, 16, LWM.vision_start, LWM.vision_end, share=8448) == LWM
    assert text.seeing(8192, 16, 16, LWM.vision_start, LWM.vision_end).size == 32000 + 8194
    assert LWM.blind == text == text.blind


@pytest.mark.parametrize("vocabulary", [TEXT, LWM])
def test_json_round_trip(vocabulary: Vocabulary) -> None:
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bos": 32000}, "bos must be a text id, 0 to 31999, got 32000"),
        ({"pad": -1}, "pad must be a text id, 0 to 31999, got -1"),
        ({"vision_size": 8193}, "at least 8194 for 8192 codes, got 8193"),
        ({"codes": 0}, "vision_size must hold"),
        ({"frame_width": 0}, "a frame must have codes, got 16 x 0"),
        ({"vision_end": ()}, "vision_start and vision_end, at least one"),
        ({"vision_start": (1, 40000)}, r"must be text ids, 0 to 31999, got \[40000\]"),
    ],
)
def test_contradictions_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LWM, **change)
