"""MetaAlign inside a transformers Trainer: a subclass whose training step is the MetaAlign step.

python examples/transformers_trainer.py [--max_steps 200 ...any TrainingArguments]
"""

from dataclasses import dataclass

import torch
from torch.utils.data import Dataset
from transformers import HfArgumentParser, Trainer, TrainingArguments

from metaalign_hf import DomainPair, MetaAlign, MetaAlignForImageClassification, load_domain_pair
from metaalign_hf.data import preprocess


class MetaAlignTrainer(Trainer):
    """Leaves the MetaAlign gradient where Trainer expects a gradient; clipping, stepping and logging stay Trainer's."""

    meta: MetaAlign | None = None

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        batch = self._prepare_inputs(inputs)
        source, both = batch["source"], torch.cat([batch["source"], batch["target"]])
        domains = torch.tensor([0] * len(source) + [1] * len(batch["target"]), device=both.device)
        progress = self.state.global_step / self.state.max_steps
        if self.meta is None:
            self.meta = MetaAlign(self.optimizer, module=model, backward=self.accelerator.backward)
        report = self.meta.backward(
            task=[lambda: model(source, labels=batch["labels"], objective="task").task_loss],
            alignment=[
                lambda: model(both, domain_labels=domains, progress=progress, objective="alignment").alignment_loss
            ],
            step=self.state.global_step,
        )
        return report.task_loss


@dataclass
class Pairs(Dataset):
    """A labelled source image and some target image, without its label."""

    pair: DomainPair
    processor: object

    def __len__(self) -> int:
        return len(self.pair.source_train)

    def __getitem__(self, index):
        other = torch.randint(len(self.pair.target_train), ()).item()
        images = preprocess([self.pair.source_train[index]], self.processor)
        unlabelled = preprocess([self.pair.target_train[other]], self.processor)
        return {"source": images[0], "target": unlabelled[0], "labels": self.pair.source_train.labels[index]}


if __name__ == "__main__":
    parser = HfArgumentParser(TrainingArguments)
    parser.set_defaults(
        output_dir="runs/trainer", max_steps=200, per_device_train_batch_size=32, learning_rate=1e-3, logging_steps=50,
        report_to="none", remove_unused_columns=False, save_strategy="no",
    )  # fmt: skip
    (arguments,) = parser.parse_args_into_dataclasses()
    pair = load_domain_pair("uci_digits", "mnist")
    model = MetaAlignForImageClassification.from_backbone("resnet10t", pair.labels, "dann", pretrained=False)
    model.set_image_sizes(32, 32)
    MetaAlignTrainer(model, arguments, train_dataset=Pairs(pair, model.image_processor())).train()
