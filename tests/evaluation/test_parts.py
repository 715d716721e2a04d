from ringworld.evaluation.parts import side_by_side


def test_shares_and_counts_stand_side_by_side() -> None:
    table = side_by_side({
        "a\nseen": {"drawings": 12, "all": 0.5, "colour": 1.0},
        "a\nheld out": {"drawings": 3, "all": 0.0, "colour": 1 / 3, "motion": 0.25},
    })  # fmt: skip
    assert table.splitlines() == [
        "                   a         a",
        "                seen  held out",
        "drawings          12         3",
        "all            50.0%      0.0%",
        "colour        100.0%     33.3%",
        "motion             -     25.0%",
    ]
