"""MetaAlign as a transformers Trainer: python examples/transformers_trainer.py [--max_steps 200 ...]."""

from transformers import HfArgumentParser

from metaalign_hf import MetaAlignForImageClassification, MetaAlignTrainer, MetaAlignTrainingArguments, load_domain_pair

parser = HfArgumentParser(MetaAlignTrainingArguments)
parser.set_defaults(output_dir="runs/trainer", max_steps=200, learning_rate=1e-3, image_size=32, report_to="none")
(arguments,) = parser.parse_args_into_dataclasses()
pair = load_domain_pair("uci_digits", "mnist")
model = MetaAlignForImageClassification.from_backbone("resnet10t", pair.labels, "dann", pretrained=False)
trainer = MetaAlignTrainer(model, arguments, pair=pair)
trainer.train()
trainer.save_model()
print(trainer.evaluate())
