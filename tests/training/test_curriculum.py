import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ringworld.data.packing import Batch
from ringworld.data.sources import CorpusConfig, TokenizerConfig
from ringworld.errors import UserError
from ringworld.mesh import MeshShape
from ringworld.model.config import ModelConfig
from ringworld.training.curriculum import Criterion, Stage, completed, differences, to_json
from ringworld.training.language import LanguageRecipe, LanguageStage, answers_only
from ringworld.training.optimizer import OptimizerConfig

STAGE = LanguageStage(
    name="one",
    sequence_length=8,
    batch_size=2,
    steps=9,
    rope_theta=1e4,
    learning_rate=4.0,
    sources=((CorpusConfig(("tiny",)), 1.0),),
)
RECIPE = LanguageRecipe(
    name="r",
    summary="s",
    model=ModelConfig(vocabulary_size=16, dim=4, ffn=4, layers=1, heads=1, kv_heads=1, head_dim=4),
    tokenizer=TokenizerConfig(16, ("tiny",)),
    optimizer=OptimizerConfig(),
    stages=(STAGE, replace(STAGE, name="two", mesh=MeshShape(sequence=2))),
)


def rates(stage: Stage) -> list[float]:
    return [stage.learning_rate_at(step) for step in range(stage.steps)]


def test_constant_learning_rate_after_the_warm_up():
    assert rates(STAGE) == [4.0] * 9
    assert rates(replace(STAGE, warmup_steps=4)) == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0]


def test_cosine_learning_rate_ends_at_the_final_one():
    stage = replace(STAGE, warmup_steps=4, schedule="cosine", final_learning_rate=2.0)
    half = math.sqrt(0.5)
    assert rates(stage) == pytest.approx([1.0, 2.0, 3.0, 4.0, 4.0, 3 + half, 3.0, 3 - half, 2.0])
    assert stage.learning_rate_at(20) == pytest.approx(2.0)


def test_over_the_steps_on_top_the_learning_rate_goes_up_and_down_once_more():
    until = Criterion("accuracy", 0.9, check_every=9, rows=1)
    stage = replace(STAGE, warmup_steps=2, schedule="cosine", until=until, more=4)
    assert stage.most_steps == stage.steps + 4
    again = [stage.learning_rate_at(stage.steps + step) for step in range(4)]
    assert again == [replace(stage, steps=4, more=0).learning_rate_at(step) for step in range(4)]
    assert again == pytest.approx([2.0, 4.0, 4.0, 0.0])
    assert rates(stage) == rates(replace(stage, more=0))


def test_a_step_takes_every_place_of_its_rows():
    assert (STAGE.units_per_step, STAGE.UNIT) == (16, "tokens")


def test_a_criterion_on_accuracy_is_reached_from_below_and_one_on_loss_from_above():
    accuracy = Criterion("accuracy", 0.9, check_every=1, rows=1)
    loss = Criterion("loss", 0.9, check_every=1, rows=1)
    assert [accuracy.reached(x) for x in (0.8, 0.9, 1.0, math.nan)] == [False, True, True, False]
    assert [loss.reached(x) for x in (0.8, 0.9, 1.0, math.nan)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, "stage 'one': steps must be at least 1; got 0"),
        ({"learning_rate": math.nan}, "stage 'one': learning_rate must be at least 0; got nan"),
        ({"rope_theta": 0.5}, "stage 'one': rope_theta must be at least 1; got 0.5"),
        ({"schedule": "linear"}, "stage 'one': schedule must be one of constant, cosine; got 'linear'"),
        ({"packing": "cut"}, "stage 'one': packing must be one of split, whole, split long; got 'cut'"),
        ({"mixing": "tokens"}, "stage 'one': mixing must be one of documents, rows; got 'tokens'"),
        ({"more": -1}, "stage 'one': more must be at least 0; got -1"),
        ({"more": 5}, "more steps are taken when its criterion is not reached, and it has none: give one"),
        ({"sources": ()}, "sources must be one or more, each with a weight above 0"),
        ({"sources": ((CorpusConfig(), 0.0),)}, "sources must be one or more, each with a weight above 0"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(change, says):
    with pytest.raises(UserError, match=says):
        replace(STAGE, **change)


def test_a_recipe_has_stages_of_different_names():
    with pytest.raises(UserError, match=r"each of another name; got \['one', 'one'\]"):
        replace(RECIPE, stages=(STAGE, STAGE))
    with pytest.raises(UserError, match="one or more stages"):
        replace(RECIPE, stages=())


def test_every_stage_purpose_and_source_has_a_seed_of_its_own():
    seeds = [
        seed
        for recipe in (RECIPE, replace(RECIPE, seed=1))
        for stage in (0, 1)
        for purpose in ("training", "validation")
        for seed in recipe.data_seeds(stage, purpose)
    ]
    assert len(seeds) == len(set(seeds)) == 16  # 2 recipes, 2 stages, 2 purposes; 1 source and its mix
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert RECIPE.data_seeds(1, "training") == RECIPE.data_seeds(1, "training")


def test_a_recipe_becomes_plain_json_and_says_its_types():
    saved = to_json(RECIPE)
    assert json.loads(json.dumps(saved)) == saved
    assert saved["stages"][0]["sources"] == [[{"type": "CorpusConfig", "corpora": ["tiny"]}, 1.0]]
    assert saved["stages"][1]["mesh"] == {"type": "MeshShape", "data": 1, "fsdp": 1, "tensor": 1, "sequence": 2}


def test_differences_name_the_field():
    def differing(**changes):
        return list(differences(to_json(RECIPE), to_json(replace(RECIPE, **changes))))

    assert differing() == []
    assert differing(seed=3) == ["seed: 0 before, 3 now"]
    assert differing(model=replace(RECIPE.model, dim=8)) == ["model.dim: 4 before, 8 now"]
    assert differing(stages=(STAGE,)) == ["stages: 2 of them before, 1 now"]
    longer = (replace(STAGE, steps=10), RECIPE.stages[1])
    assert differing(stages=longer) == ["stages[0].steps: 9 before, 10 now"]
    assert differing(tokenizer=TokenizerConfig(17, ("tiny",))) == ["tokenizer.size: 16 before, 17 now"]


def test_where_and_how_a_run_is_kept_may_change():
    moved = replace(
        RECIPE,
        summary="other words",
        mesh=MeshShape(data=8),
        checkpoint_seconds=5.0,
        checkpoints_kept=9,
        stages=(replace(STAGE, mesh=MeshShape(fsdp=4)), replace(RECIPE.stages[1], mesh=None)),
    )
    assert list(differences(to_json(RECIPE), to_json(moved))) == []


def test_answers_are_the_targets_that_weigh_most_in_their_row():
    weights = np.array([[0.1, 0.5, 0.4, 0.0], [0.01, 0.02, 0.02, 0.02], [0.0, 0.0, 0.0, 0.0]], np.float32)
    ids = np.zeros((3, 4), np.int32)
    kept = answers_only(Batch(ids, ids, ids, ids, weights))
    np.testing.assert_array_equal(
        kept.weights, np.array([[0.0, 0.5, 0.4, 0.0], [0.01, 0.02, 0.02, 0.02], [0.0, 0.0, 0.0, 0.0]], np.float32)
    )
    assert kept.weights.dtype == np.float32


def test_a_criterion_may_have_data_of_its_own():
    own = ((CorpusConfig(("tiny",)), 1.0),)
    stage = replace(STAGE, until=Criterion("accuracy", 0.9, check_every=1, rows=1))
    assert stage.data("training") == stage.data("validation") == stage.sources
    stage = replace(stage, until=replace(stage.until, sources=own))
    assert stage.data("training") == stage.sources
    assert stage.data("validation") == own
    recipe = replace(RECIPE, stages=(stage,))
    assert len(recipe.data_seeds(0, "validation")) == 2


def test_fields_that_came_since_are_at_their_defaults():
    """A run that was begun by an earlier version goes on."""
    saved = json.loads(json.dumps(to_json(RECIPE)))
    for place in (saved, saved["stages"][0], saved["stages"][1]["mesh"], saved["optimizer"], saved["precision"]):
        assert list(differences(completed(saved, RECIPE), to_json(RECIPE))) == []
        for name in ("softmax", "mixing", "tensor", "spike", "remat"):
            place.pop(name, None)
    assert list(differences(completed(saved, RECIPE), to_json(RECIPE))) == []
    assert list(differences(saved, to_json(RECIPE))) != []
    rows = replace(RECIPE, stages=(replace(STAGE, mixing="rows"), *RECIPE.stages[1:]))
    assert list(differences(completed(saved, rows), to_json(rows))) == [
        "stages[0].mixing: 'documents' before, 'rows' now"
    ]
    del saved["optimizer"]["kind"], saved["model"]["dim"]
    assert list(differences(completed(saved, RECIPE), to_json(RECIPE))) == ["model.dim: None before, 4 now"]
    assert "sequence_length" not in completed({"type": "LanguageStage"}, STAGE)
    assert completed({"type": "Other"}, STAGE) == {"type": "Other"}
