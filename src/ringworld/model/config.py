"""The shape of a model."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from ringworld.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """A LLaMA-shaped decoder: RMSNorm, SwiGLU, rotary positions, grouped queries.

    RoPE's theta is not here: it grows with the context from stage to stage, so it is data of the forward pass.

    Attributes:
        tied: one table for embedding and head.
        qk_norm: RMSNorm of each query and key head, with learned gains.
        sharpened_from: beyond so many tokens a query grows with the logarithm of its position, for the more there is to
            look at, the less of its attention is left for what it looks for (Chiang & Cholak, arXiv 2202.12172). None:
            nowhere.
    """

    vocabulary_size: int
    dim: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = False
    qk_norm: bool = False
    norm_eps: float = 1e-6
    sharpened_from: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and not (isinstance(value, int) and value >= 1):
                raise UserError(f"a model needs {field.name} of at least 1 (given: {value!r})")
        if self.heads % self.kv_heads:
            raise UserError(
                f"{self.heads} query heads do not divide among {self.kv_heads} key heads: choose kv_heads that does"
            )
        if self.sharpened_from is not None and self.sharpened_from < 2:
            raise UserError(f"queries are sharpened beyond 2 tokens or more, got sharpened_from={self.sharpened_from}")
        if self.head_dim % 2:
            raise UserError(f"head_dim must be even for rotary positions (given: {self.head_dim})")

    @property
    def parameters(self) -> int:
        """How many numbers the model holds."""
        attention = self.dim * self.head_dim * (2 * self.heads + 2 * self.kv_heads) + 2 * self.head_dim * self.qk_norm
        layer = attention + 3 * self.dim * self.ffn + 2 * self.dim
        return self.layers * layer + self.vocabulary_size * self.dim * (1 if self.tied else 2) + self.dim

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raises UserError when a field is missing or unknown."""
        names = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - names):
            raise UserError(
                f"unknown fields in the model's configuration: {', '.join(unknown)}; it may have "
                f"{', '.join(sorted(names))}"
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"the model's configuration is incomplete: {error}") from error
