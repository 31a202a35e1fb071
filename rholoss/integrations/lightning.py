"""The state of a selector in the checkpoints of Lightning's ``Trainer``."""

from collections.abc import Collection
from typing import Any

from lightning.pytorch import Callback

from rholoss.selector import Selector


class SelectorCheckpoint(Callback):
    """Saves the state of the selector that a ``Trainer`` trains on in its checkpoints, and resumes from it.

    Without it, Lightning restores the state of a loader in mid-epoch only: after a checkpoint at the end of an epoch, as is
    usual, the selector would start from scratch.

    Args:
        allow: names of settings that may differ from those of the checkpoint, see ``Selector.load_state_dict``.

    Raises:
        ValueError: the checkpoint has no state of a selector.
        TypeError: the ``Trainer`` does not train on a selector.

    Examples:
        With a selector around the loader::

            trainer = Trainer(callbacks=[SelectorCheckpoint()])
            trainer.fit(module, selector, ckpt_path=...)
    """

    KEY = "rholoss_selector"

    def __init__(self, *, allow: Collection[str] = ()) -> None:
        self.allow = allow
        self._state: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[self.KEY] = _selector_of(trainer).state_dict()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.KEY not in checkpoint:
            cure = "resume from one that was saved with SelectorCheckpoint, or remove it to start the selector from scratch"
            raise ValueError(f"this checkpoint holds no state of a selector: {cure}")
        self._state = checkpoint[self.KEY]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        selector = _selector_of(trainer)
        if self._state is not None:
            selector.load_state_dict(self._state, allow=self.allow)
            self._state = None


def _selector_of(trainer: Any) -> Selector:
    if not isinstance(trainer.train_dataloader, Selector):
        got = f"SelectorCheckpoint needs a selector to train on, got {type(trainer.train_dataloader).__name__}"
        raise TypeError(f"{got}; pass it to trainer.fit(module, selector), or return it from train_dataloader")
    return trainer.train_dataloader
