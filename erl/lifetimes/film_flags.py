"""Flags of films. Nothing here needs a library that takes long to load."""

from dataclasses import dataclass

from erl.cli import option
from erl.errors import UserError

FORMATS = (".mp4", ".gif", ".webp")


@dataclass(frozen=True)
class FilmConfig:
    """Flags of `python -m erl.film`."""

    model: str | None = option(None, "required: saved model, with or without .zip")
    file: str | None = option(
        None, "film to write, .mp4, .gif or .webp; by default the model's name, .mp4"
    )
    steps: int | None = option(
        None, "at most so many environment steps; by default to the end of the episode"
    )
    episode_seed: int = option(0, "seed of the episode")
    panel: bool = option(False, "reservoir activity and return so far beside the frames")
    width: int | None = option(None, "width of the frames in pixels; by default as drawn")
    overwrite: bool = option(False, "replace the file if it exists")

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("--model is missing: which saved model to film")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"--steps must be at least 1, not {self.steps}")
        if self.width is not None and self.width < 16:
            raise UserError(f"--width must be at least 16 pixels, not {self.width}")
        if self.episode_seed < 0:
            raise UserError(f"--episode_seed must be at least 0, not {self.episode_seed}")
