"""From logits to the next token: guidance, the grammar, temperature, top-k, top-p.

Every setting is data, never a compile-time constant: changing the temperature or top-p of a run compiles nothing again.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key

from ringworld.errors import UserError
from ringworld.generation.grammar import Grammar, Place


def restrict(logits: Float[Array, "B V"], top_k: Int32[Array, ""], top_p: Float[Array, ""]) -> Float[Array, "B V"]:
    """The logits with all but the likeliest tokens at -inf: exactly the `top_k` first, then of those (renormalised) the
    smallest set, likeliest first, whose probability reaches `top_p` (nucleus sampling, arXiv 1904.09751, section 3.1).

    `top_k` 0 keeps all, `top_p` 1 keeps all; at least one token is always kept. Of equal logits the lower id comes
    first.
    """
    vocabulary = logits.shape[-1]
    ranked = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    within_k = jnp.arange(vocabulary) < jnp.where(top_k > 0, top_k, vocabulary)
    sorted_logits = jnp.where(within_k[None], jnp.take_along_axis(logits, ranked, axis=-1), -jnp.inf)
    probabilities = jax.nn.softmax(sorted_logits, axis=-1)
    # A token is in the nucleus when those before it do not fill it. Rounding may let them sum to 1 early, hence the
    # last term.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = within_k[None] & ((before < top_p) | (top_p >= 1.0))
    kept = jnp.put_along_axis(jnp.zeros_like(kept), ranked, kept, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen, as data for compiled functions. Made by `Sampler.build`, which checks the settings.

    Temperature 0 is greedy decoding: the likeliest token, the lower id of equals. `grammar` says which ids may come.

    With `guidance` the second half of the rows is the first half's without its prompt, and what is drawn for a row goes
    to both: from u + guidance * (c - u), where c and u are the logits with the prompt and without. (Classifier-free
    guidance, arXiv 2207.12598, as LWM draws pictures.)
    """

    key: Key[Array, ""]
    temperature: Float[Array, ""]
    top_k: Int32[Array, ""]
    top_p: Float[Array, ""]
    grammar: Grammar
    guidance: Float[Array, ""] | None  # None: every row by itself

    @classmethod
    def build(
        cls,
        grammar: Grammar,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        guidance: float | None = None,
    ) -> "Sampler":
        """Raises UserError for a setting outside its range."""
        if not 0.0 <= temperature < float("inf"):
            raise UserError(f"the temperature is {temperature}: it takes 0 (greedy) or a positive number")
        if top_k < 0:
            raise UserError(f"top-k is {top_k}: it takes a number of tokens, or 0 to keep all of them")
        if not 0.0 < top_p <= 1.0:
            raise UserError(f"top-p is {top_p}: it takes a probability above 0, up to 1, which keeps all tokens")
        if guidance is not None and not 0.0 <= guidance < float("inf"):
            raise UserError(
                f"the guidance (CFG) is {guidance}: it takes 1, the prompt as it is, or more to follow it more closely"
            )
        return cls(
            key=jax.random.key(seed),
            temperature=jnp.float32(temperature),
            top_k=jnp.int32(top_k),
            top_p=jnp.float32(top_p),
            grammar=grammar,
            guidance=None if guidance is None else jnp.float32(guidance),
        )

    def choose(self, logits: Float[Array, "B V"], place: Place, step: Int32[Array, ""]) -> Int32[Array, " B"]:
        """The token that comes at `step` (0 is the first after the prompt) in every row, of those allowed at its place.

        The random draw depends on the seed, the row's number and the step alone: a row gives the same text however many
        rows are padded beneath it.
        """
        allowed = self.grammar.allowed(place)
        if self.guidance is not None:
            half = logits.shape[0] // 2
            guided, free = logits[:half], logits[half:]
            logits, allowed = free + self.guidance * (guided - free), allowed[:half]
        logits = jnp.where(allowed, logits, -jnp.inf)

        def greedy() -> Array:
            return jnp.argmax(logits, axis=-1)

        def drawn() -> Array:
            key = jax.random.fold_in(self.key, step)
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(logits.shape[0]))
            kept = restrict(logits / self.temperature, self.top_k, self.top_p)
            return jax.vmap(jax.random.categorical)(keys, kept)

        # Greedy decoding, which every evaluation uses, does not pay for the sort.
        token = jax.lax.cond(self.temperature > 0.0, drawn, greedy).astype(jnp.int32)
        return token if self.guidance is None else jnp.tile(token, 2)
