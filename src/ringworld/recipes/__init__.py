"""Named runs, as plain typed functions: what `ringworld train NAME` trains.

A recipe is data (`training.curriculum.Recipe`): change a number here, or write a function of your own and hand its
result to `training.loop.train`.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ringworld.errors import UserError
from ringworld.recipes.extension import EXTEND, extend
from ringworld.recipes.long_text import nano_text, nano_text_long
from ringworld.recipes.lwm import LWM_TEXT, LWM_VISION, lwm_text, lwm_vision
from ringworld.recipes.nano import nano
from ringworld.recipes.smoke import debug, debug_vision
from ringworld.recipes.vqgan import vqgan_emoji, vqgan_lwm, vqgan_nano
from ringworld.training.curriculum import Recipe
from ringworld.training.language import LanguageRecipe
from ringworld.weights.models import open_model

RECIPES: Mapping[str, Callable[[int, Path | None], Recipe]] = {
    "debug": debug,
    "debug-vision": debug_vision,
    "nano": nano,
    "nano-text": nano_text,
    "nano-text-long": nano_text_long,
    "vqgan-nano": vqgan_nano,
    "vqgan-emoji": vqgan_emoji,
    "vqgan-lwm": vqgan_lwm,
    **{f"text-{length}": lwm_text(length) for length in LWM_TEXT},
    **{f"vision-{length}": lwm_vision(length) for length in LWM_VISION},
}


def build(
    name: str,
    *,
    seed: int = 0,
    data: Path | None = None,
    init: str | None = None,
    lengths: tuple[int, ...] = (),
) -> Recipe:
    """The recipe of a name.

    Args:
        init: a model to begin with, whose shape and tokenizer it then has; for a tokenizer of frames another one of
            its shape.
        lengths: of the contexts of `extend`.

    Raises:
        UserError: an unknown name, with the nearest; data, a model to begin with, or lengths that the recipe does not
            take, or needs.
    """
    if name == EXTEND:
        return extend(init, lengths, seed, data)
    if lengths:
        raise UserError(f"{name} has stages of its own and does not take --stages: leave it out, or train {EXTEND}")
    if name not in RECIPES:
        near = difflib.get_close_matches(name, (*RECIPES, EXTEND), n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"there is no recipe {name!r}: {hint}The recipes are {', '.join((*RECIPES, EXTEND))}")
    recipe = RECIPES[name](seed, data)
    if init is not None and isinstance(recipe, LanguageRecipe):
        return _beginning_with(init, recipe)
    return replace(recipe, init=init)


def _beginning_with(init: str, recipe: LanguageRecipe) -> LanguageRecipe:
    """The recipe for the shape and the tokenizers of a given model. One of text alone gets the ids of the recipe's
    vision behind its own; one that sees keeps its own tokenizer of frames."""
    source = open_model(init)
    about = source.description
    model, frames = about.config, recipe.frames
    if about.vocabulary.vision_size:
        frames = None if source.frames else frames
    elif frames is not None and recipe.tokenizer is not None:
        share = recipe.model.vocabulary_size - recipe.tokenizer.size
        model = replace(model, vocabulary_size=about.vocabulary.text_size + share)
    return replace(
        recipe,
        init=init,
        model=model,
        rope_scaling=about.rope_scaling,
        tokenizer=None,
        frames=frames,
        codebook_share=0.0,
    )
