"""A checkpoint trained further on photographs and classes of one's own."""

from facezoo.finetuning.loop import Finetuning, fit, predict
from facezoo.finetuning.run import Finetuned, finetune

__all__ = ["Finetuned", "Finetuning", "finetune", "fit", "predict"]
