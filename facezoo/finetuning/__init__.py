"""Fine-tuning of a checkpoint on images and classes of the user."""

from facezoo.finetuning.loop import Finetuning, fit, predict
from facezoo.finetuning.run import Finetuned, finetune

__all__ = ["Finetuned", "Finetuning", "finetune", "fit", "predict"]
