"""Films of the shapes world as frames, and what of a score is wrong."""

import numpy as np

from ringworld.worlds.film import Scene

SIZE = 64


def filmed(scene: Scene, seconds: int = 8) -> np.ndarray:
    return np.stack([scene.frame(number, SIZE) for number in range(seconds)])


def wrong(score: dict[str, bool]) -> set[str]:
    return {what for what, right in score.items() if not right}
