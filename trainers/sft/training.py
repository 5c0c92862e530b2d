"""Supervised fine-tuning: raise the probability of what the policy writes in demonstrations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from forkgym.trainers.master_weights import adamw
from forkgym.trainers.memory_saving import checkpoint_activations
from forkgym.trainers.sft.demonstrations import Demonstration, stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forkgym.trainers.sft.config import SftConfig

NOT_WRITTEN = -100  # what transformers takes for no label
Metrics = Mapping[str, float]


class SftError(RuntimeError):
    """Fine-tuning cannot go on: the loss or the gradient is not finite."""


@dataclass(frozen=True, slots=True)
class FineTuning:
    """All that is needed to fine-tune a model; made by `prepare`.

    Attributes:
        model: Its trainable weights change.
        optimizer: Steps them.
        pad_token: Fills up rows.
        arguments: The library's settings.
        config: Steps and batches.
    """

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    pad_token: int
    arguments: TrainingArguments
    config: SftConfig


def mean_nll(logits_BTV: torch.Tensor, labels_BT: torch.Tensor, num_tokens: torch.Tensor | int) -> torch.Tensor:
    """Negative log-likelihood of the labelled tokens of a micro-batch, normalised by the tokens of the whole batch.

    ``L = -sum_bt m_bt log pi(token_bt | tokens before) / num_tokens``

    Args:
        logits_BTV: Of the token after each, any float.
        labels_BT: The tokens, int64, `NOT_WRITTEN` where the policy did not write them.
        num_tokens: Labelled tokens of the whole batch, of all its micro-batches together; > 0.

    Returns:
        Scalar loss, float32; the losses of the micro-batches add up to that of the batch.
    """
    targets_BT = labels_BT[:, 1:]
    written_BT = targets_BT != NOT_WRITTEN
    # Only these rows of the logits are copied to float32.
    return (
        functional.cross_entropy(logits_BTV[:, :-1][written_BT].float(), targets_BT[written_BT], reduction="sum")
        / num_tokens
    )


class Loss:
    """`mean_nll` as the library calls it; ``num_tokens`` is what it last was normalised by."""

    num_tokens = 0

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
        """The loss of a micro-batch."""
        self.num_tokens = int(num_items_in_batch)
        return mean_nll(outputs.logits, labels, num_items_in_batch)


class Rows(Dataset[Demonstration]):
    """Demonstrations as the library takes them."""

    def __init__(self, demonstrations: Sequence[Demonstration]) -> None:
        self.demonstrations = demonstrations

    def __len__(self) -> int:
        """How many there are."""
        return len(self.demonstrations)

    def __getitem__(self, index: int) -> Demonstration:
        """One of them."""
        return self.demonstrations[index]


class Recorder(TrainerCallback):
    """Hands on the figures of each step, and stops where they are not finite."""

    def __init__(self, loss: Loss, on_step: Callable[[Metrics], None]) -> None:
        self.loss = loss
        self.on_step = on_step
        self.begun = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **options: Any) -> None:
        """Take in the figures of a step.

        Raises:
            SftError: The loss or the gradient's norm is not finite.
        """
        del args, control, options
        if "loss" not in logs:  # the figures of the whole run come last
            return
        now = time.perf_counter()
        metrics = {
            "step": int(state.global_step),
            "epoch": float(state.epoch),
            "loss": float(logs["loss"]),
            "grad_norm": float(logs["grad_norm"]),
            "learning_rate": float(logs["learning_rate"]),
            "tokens/trained": self.loss.num_tokens,
            "time/train_s": now - self.begun,
        }
        self.begun = now
        self.on_step(metrics)
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                raise SftError(f"{name} is {metrics[name]} in step {metrics['step']}; a lower learning rate may help")


def prepare(model: PreTrainedModel, pad_token: int, config: SftConfig, seed: int, folder: Path) -> FineTuning:
    """Set up AdamW; the gradient's norm is kept to 1.

    Weights in bfloat16 are stepped in float32, see `forkgym.trainers.master_weights`.

    Args:
        model: What to train.
        pad_token: Fills up rows.
        config: Steps and batches.
        seed: Of the order of the demonstrations.
        folder: For what the library wants to write.

    Raises:
        ValueError: Several processes were launched, several GPUs are visible, or the model can't be trained so.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
        max_grad_norm=1.0,
        seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # which shows the mean of the steps before in place of what is not finite
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    if arguments.world_size > 1 or arguments.n_gpu > 1:
        raise ValueError(
            f"{arguments.world_size} processes were launched and {arguments.n_gpu} GPUs are visible; fine-tuning runs "
            "in one process on one GPU, such as that of CUDA_VISIBLE_DEVICES=0"
        )
    optimizer = adamw(model, config.peak_learning_rate)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    return FineTuning(model, optimizer, pad_token, arguments, config)


def fine_tune(tuning: FineTuning, demonstrations: Sequence[Demonstration], on_step: Callable[[Metrics], None]) -> None:
    """Train a model in place.

    The loss of a step is the mean over the written tokens of its batch, whatever its micro-batches. The order of the
    demonstrations and so the weights depend on the seed alone, on the same machine. The learning rate follows the
    config's schedule, since the library's own warm-up begins with a step of learning rate 0.

    Args:
        tuning: What to train, and how.
        demonstrations: What to learn.
        on_step: Takes the figures of each step.

    Raises:
        SftError: The loss or the gradient is not finite.
        ValueError: The warm-up takes more steps than there are.
    """

    def collate(batch: list[Demonstration]) -> dict[str, torch.Tensor]:
        tokens_BT, written_BT, present_BT = stack(batch, tuning.pad_token)
        labels_BT = torch.where(written_BT, tokens_BT, NOT_WRITTEN)
        return {"input_ids": tokens_BT, "attention_mask": present_BT.long(), "labels": labels_BT}

    loss = Loss()
    schedule = tuning.config.schedule(len(demonstrations))
    trainer = Trainer(
        model=tuning.model,
        args=tuning.arguments,
        data_collator=cast(Any, collate),
        train_dataset=Rows(demonstrations),
        compute_loss_func=cast(Any, loss),
        optimizers=(tuning.optimizer, LambdaLR(tuning.optimizer, schedule.factor)),
        callbacks=[Recorder(loss, on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
