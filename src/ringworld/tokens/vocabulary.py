"""The one id space: every special id and the layout of a frame, once.

Text ids are 0..T-1. Vision code c is T + c; eof (end of a frame) and eov (end of the vision) follow the codes, and what
is left of the vision's share is never used. One embedding table and one head cover it all; a target's softmax runs over
its own modality's slice.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self


@dataclass(frozen=True)
class Vocabulary:
    """Sizes, special ids and frame layout of one id space.

    `text_size` text ids; `bos` begins every document, or nothing does where it is None. `codes` vision codes in a share
    of `vision_size` ids, which holds eof and eov too (0: text only). `vision_start` and `vision_end` are the text ids
    that open and close vision (three pieces each in LWM's). `frame_height` and `frame_width` are counted in codes.
    Raises ValueError when the parts contradict each other.
    """

    text_size: int
    bos: int | None
    eos: int
    pad: int
    codes: int = 0
    vision_size: int = 0
    vision_start: tuple[int, ...] = ()
    vision_end: tuple[int, ...] = ()
    frame_height: int = 0
    frame_width: int = 0

    def __post_init__(self) -> None:
        for name in ("bos", "eos", "pad"):
            value = getattr(self, name)
            if not (name == "bos" and value is None) and not 0 <= value < self.text_size:
                raise ValueError(f"{name} must be a text id, 0 to {self.text_size - 1}, got {value}")
        vision = (self.codes, self.vision_size, self.frame_height, self.frame_width, self.vision_start, self.vision_end)
        if not any(vision):
            return
        if self.codes < 1 or self.vision_size < self.codes + 2:
            raise ValueError(
                f"vision_size must hold the codes, eof and eov: at least {self.codes + 2} for {self.codes} codes, "
                f"got {self.vision_size}"
            )
        if self.frame_height < 1 or self.frame_width < 1:
            raise ValueError(f"a frame must have codes, got {self.frame_height} x {self.frame_width}")
        if not self.vision_start or not self.vision_end:
            raise ValueError("vision needs vision_start and vision_end, at least one text id each")
        outside = [i for i in (*self.vision_start, *self.vision_end) if not 0 <= i < self.text_size]
        if outside:
            raise ValueError(f"vision_start and vision_end must be text ids, 0 to {self.text_size - 1}, got {outside}")

    @property
    def size(self) -> int:
        """How many ids there are: rows of the embedding table."""
        return self.text_size + self.vision_size

    @property
    def opening(self) -> tuple[int, ...]:
        """The ids that begin every document: bos, or none."""
        return () if self.bos is None else (self.bos,)

    @property
    def eof(self) -> int:
        """The id that ends every frame but the last."""
        self._require_vision("eof")
        return self.text_size + self.codes

    @property
    def eov(self) -> int:
        """The id that ends the last frame."""
        self._require_vision("eov")
        return self.text_size + self.codes + 1

    @property
    def codes_per_frame(self) -> int:
        """Codes of one frame, without its terminator."""
        return self.frame_height * self.frame_width

    @property
    def modalities(self) -> tuple[slice, ...]:
        """The slices of ids over which softmaxes run: text, and vision where there is one."""
        text = slice(0, self.text_size)
        return (text, slice(self.text_size, self.size)) if self.vision_size else (text,)

    def seeing(
        self, codes: int, height: int, width: int, start: tuple[int, ...], end: tuple[int, ...], share: int = 0
    ) -> "Vocabulary":
        """The same text with vision behind it: frames of height x width codes, and the ids of `<vision>` and
        `</vision>`. The vision has `share` ids, or as many as it needs if that is more."""
        return replace(
            self, codes=codes, vision_size=max(codes + 2, share), vision_start=start, vision_end=end,
            frame_height=height, frame_width=width,
        )  # fmt: skip

    @property
    def blind(self) -> "Vocabulary":
        """The same text without vision."""
        return Vocabulary(self.text_size, self.bos, self.eos, self.pad)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, read back by `from_dict`."""
        return asdict(self) | {"vision_start": list(self.vision_start), "vision_end": list(self.vision_end)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        values = dict(values)
        for name in ("vision_start", "vision_end"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)

    def _require_vision(self, name: str) -> None:
        if not self.vision_size:
            raise ValueError(f"this vocabulary has no vision, so no {name}")


# LWM's id space (arXiv 2402.08268): LLaMA-2's text and 256x256 pixel frames of 16x16 codes.
LWM = Vocabulary(
    text_size=32000,
    bos=1,
    eos=2,
    pad=0,
    codes=8192,
    vision_size=8448,
    vision_start=(529, 4924, 29958),
    vision_end=(1533, 4924, 29958),
    frame_height=16,
    frame_width=16,
)
