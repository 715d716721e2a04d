"""What the embeddings of ids begin as: of a model that gets more of them, and of ids that stand for known vectors."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from ringworld.model.config import ModelConfig
from ringworld.model.transformer import Weights, declare
from ringworld.parameters import shardings


def grow_vocabulary(weights: Weights, config: ModelConfig, kept: int, key: Key[Array, ""], mesh: Mesh) -> Weights:
    """The weights of a model that has the first `kept` ids of the given one, and new ids behind them.

    The new rows of the embedding, and the new columns of the head, are drawn one number at a time with the mean and the
    deviation that the kept ones have there. Around the mean no new id is likelier than the old ones (Hewitt,
    "Initializing new word embeddings for pretrained language models", 2021), and with the deviation no two are alike.
    What the kept ids mean and how they are scored does not change.

    Args:
        config: of the larger model, which differs in its `vocabulary_size` alone.
    """
    places = shardings(declare(config), mesh)

    def grown(table: Float[Array, "V D"], key: Key[Array, ""]) -> Float[Array, "W D"]:
        old = table[:kept]
        drawn = jax.random.normal(key, (config.vocabulary_size - kept, config.dim))
        return jnp.concatenate([old, old.mean(0, keepdims=True) + old.std(0, keepdims=True) * drawn])

    first, second = jax.random.split(key)
    embedding = jax.jit(grown, out_shardings=places.embedding)(weights.embedding, first)
    head = weights.head
    if head is not None:
        head = jax.jit(lambda head, key: grown(head.T, key).T, out_shardings=places.head)(head, second)
    return replace(weights, embedding=embedding, head=head)


def resemble(
    weights: Weights,
    config: ModelConfig,
    first: int,
    vectors: Float[Array, "ids d"],
    share: float,
    key: Key[Array, ""],
    mesh: Mesh,
) -> Weights:
    """The weights, with embeddings of the ids from `first` on that are as alike as the vectors that they stand for.

    Mean and deviation stay. So much of the variance (`share`, 0 to 1) is a random projection of the vectors, which
    keeps their angles (Johnson and Lindenstrauss, 1984); the rest is what tells near ones apart.
    """

    def embedded(table: Float[Array, "V D"], vectors: Float[Array, "ids d"]) -> Float[Array, "V D"]:
        rows = table[first : first + len(vectors)]
        mean, deviation = rows.mean(0, keepdims=True), rows.std()
        known = (vectors - vectors.mean(0, keepdims=True)) / jnp.maximum(vectors.std(0, keepdims=True), 1e-6)
        projection = jax.random.normal(key, (vectors.shape[1], config.dim)) * vectors.shape[1] ** -0.5
        drawn = (1 - share) ** 0.5 * (rows - mean) + share**0.5 * deviation * known @ projection
        return table.at[first : first + len(vectors)].set(mean + drawn)

    place = shardings(declare(config), mesh).embedding
    return replace(weights, embedding=jax.jit(embedded, out_shardings=place)(weights.embedding, vectors))
