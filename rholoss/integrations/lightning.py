"""The selector in the checkpoints of Lightning's ``Trainer``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from rholoss.selector import Selector


class SelectorCheckpoint(Callback):
    """Keeps the state of the selector that a ``Trainer`` trains on in its checkpoints, and goes on with it.

    Lightning keeps the state of any loader that has one, but gives it back in mid-epoch only. A checkpoint that was saved when an
    epoch was over, as is usual, would begin the next epoch with a new selector.

    Raises:
        ValueError: what is resumed from holds no selector's state.
        TypeError: what the ``Trainer`` trains on is no selector.

    Examples:
        With a selector around the loader::

            trainer = Trainer(callbacks=[SelectorCheckpoint()])
            trainer.fit(module, selector, ckpt_path=...)
    """

    KEY = "rholoss_selector"

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[self.KEY] = _selector_of(trainer).state_dict()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.KEY not in checkpoint:
            raise ValueError(
                "this checkpoint holds no state of a selector: resume from one that was saved with SelectorCheckpoint, or leave "
                "SelectorCheckpoint out to begin the selector anew"
            )
        self._state = checkpoint[self.KEY]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        selector = _selector_of(trainer)
        if self._state is not None:
            selector.load_state_dict(self._state)
            self._state = None


def _selector_of(trainer: Any) -> Selector:
    if not isinstance(trainer.train_dataloader, Selector):
        raise TypeError(
            f"SelectorCheckpoint needs a selector to train on, got {type(trainer.train_dataloader).__name__}; pass it to "
            "trainer.fit(module, selector), or return it from train_dataloader"
        )
    return trainer.train_dataloader
