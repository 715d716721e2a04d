from ringworld.evaluation.page import captioned, duration, image, page, side_by_side, table, video


def test_what_people_say_is_text_and_not_markup() -> None:
    parts = [
        page("<i>", []),
        table(["<i>"], [["<i>"]], numbers=range(1)),
        captioned(image(b"", "<i>"), {"<i>": "<i>", "": "<i>"}),
        video(b"", '"<i>'),
    ]
    for part in parts:
        assert "<i>" not in part
        assert "&lt;i&gt;" in part
    assert '""' not in parts[-1]


def test_lines_below_a_picture_may_have_names() -> None:
    figure = captioned("PICTURE", {"asked for": "a ring", "": "0:30"})
    assert figure == "<figure>PICTURE<figcaption><span>asked for:</span> a ring<br>0:30</figcaption></figure>"
    assert side_by_side("cards", [figure, figure]).count("<figure>") == 2


def test_durations_are_said_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (12.4, 90, 7260)] == ["12 s", "1 min 30 s", "2 h 1 min"]
