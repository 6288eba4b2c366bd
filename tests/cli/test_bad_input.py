"""Bad input on the command line: one clear line on stderr, exit code 2, nothing lost."""

import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from metaalign_hf.cli import run
from metaalign_hf.configuration import OptimizerConfig
from metaalign_hf.configuration.hub import license_notes
from metaalign_hf.errors import UserError
from metaalign_hf.training import adapt, load_config
from tests.helpers.runs import TINY

TINY_VIT = [
    "--model.backbone_options",
    "{hidden_size: 12, num_hidden_layers: 2, num_attention_heads: 2, image_size: 16, patch_size: 8}",
]


def refused(capsys, *arguments: str) -> str:
    """Run a command that must be refused; returns its one line."""
    assert run(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("metaalign: ") and error.count("\n") == 1
    return error


def train_refused(capsys, tmp_path, *options: str) -> str:
    error = refused(capsys, "train", "--config", TINY, "--training.output_dir", str(tmp_path / "run"), *options)
    assert not (tmp_path / "run").exists(), "a refused run leaves nothing behind"
    return error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.source", "imagefolder:/no/such/folder"], ["/no/such/folder", "does not exist"]),
        (["--data.target", "minst"], ["minst", "mnist"]),
        (["--data.target", "photos:here"], ["photos:here", "imagefolder:FOLDER"]),
        (["--model.backbone", "resnet5O"], ["resnet5O", "resnet50"]),
        (["--model.backbone", "bert"], ["bert", "no image classifier"]),
        (["--model.alignment", "dan"], ["dan", "dann"]),
        (["--model.alignment", "null"], ["model.alignment", "source_only"]),
        (["--model.alignment", "3"], ["alignment: 3 must be a name or a mapping with a name", "dann"]),
        (["--model.alignment", "[" * 3000 + "]" * 3000], ["option --model.alignment is nested too deeply"]),
        (
            ["--model.backbone_options", "{depth: 1, depth: 2}"],
            ["backbone_options", "key 'depth' stands twice"],
        ),
        (["--data.source", "imagefolder:"], ["domain 'imagefolder:' has no path; write imagefolder:PATH"]),
        (["--data.source", "list:"], ["domain 'list:' has no path; write list:PATH"]),
        (["--data.source", "mnist:"], ["domain 'mnist:' is unknown; did you mean mnist?"]),
        (["--model.checkpoint", "/no/such/checkpoint"], ["model.checkpoint", "/no/such/checkpoint"]),
        (["--model.backbone_options.depth", "[1, 1]"], ["depth", "depths"]),
        (["--training.batchsize", "8"], ["training.batchsize", "training.batch_size"]),
        (["--trainnig.batch_size", "8"], ["trainnig.batch_size", "training.batch_size"]),
        (["--max_steps", "8"], ["max_steps", "training.max_steps"]),
        (["--training.batch_size", "many"], ["training.batch_size is many: it must be a whole number, 1 or more"]),
        (["--training.batch_size", "2000"], ["2000", "1437", "batch_size"]),
        (["--training.batch_size", "0"], ["batch_size", "1 or more"]),
        (["--training.mixed_precision", "fp8"], ["mixed_precision", "bf16"]),
        (["--training.gradient_checkpointing", "true"], ["gradient_checkpointing: resnet cannot", "leave it out"]),
        (["--coordination.method", "metalign"], ["coordination.method", "metaalign"]),
        (["--coordination.inner_lr", "-1"], ["coordination.inner_lr"]),
        (["--coordination.inner_lr", ".nan"], ["coordination.inner_lr"]),
        (["--coordination.smoothing", "-1"], ["coordination.smoothing"]),
        (
            ["--coordination.smoothing", "0.1", "--coordination.inner_scope", "head"],
            ["coordination.smoothing", "share_prefix"],
        ),
        (
            ["--coordination.smoothing", "0.1", "--coordination.method", "source_only"],
            ["coordination.smoothing", "source_only"],
        ),
        (["--coordination.alignment_share", "0"], ["alignment_share is 0.0: it must be a finite number above 0 or"]),
        (["--coordination.alignment_share", ".inf"], ["alignment_share is inf: it must be a finite number above 0"]),
        (
            ["--coordination.alignment_share", "0.25", "--coordination.method", "source_only"],
            ["coordination.alignment_share is 0.25: with coordination.method source_only nothing reads it"],
        ),
        (
            [
                *("--coordination.alignment_share", "0.25", "--model.alignment", "null"),
                *("--training.target_losses", "information_maximization"),
            ],
            ["coordination.alignment_share is 0.25: with model.alignment null there is nothing to scale; drop it\n"],
        ),
        (["--coordination.order", "3"], ["coordination.order", "1, 2"]),
        (["--coordination.inner_scope", "neck"], ["coordination.inner_scope", "last_stage"]),
        (["--coordination.groups", "layer"], ["coordination.groups", "stage"]),
        (["--coordination.roles", "random"], ["coordination.roles", "alternate"]),
        (
            ["--coordination.order", "2", "--model.backbone", "vit", *TINY_VIT],
            ["twice", "attention: eager"],
        ),
        (
            ["--model.backbone", "vit", *TINY_VIT, "--data.image_size", "18"],
            ["data.image_size: vit cannot take images of 18 x 18 pixels (", "(18*18)", "(16*16)"],
        ),
        (
            ["--model.backbone", "vit", *TINY_VIT, "--data.image_size", "4"],
            ["data.image_size: vit cannot take images of 4 x 4 pixels ("],
        ),
        (["--model.attention", "fast"], ["model.attention", "fast"]),
        (["--training.ema_decay", "1.5"], ["training.ema_decay"]),
        (
            ["--training.pseudo_label_weight", "1", "--training.ema_decay", "0.9"],
            ["training.pseudo_label_weight", "for detectors"],
        ),
        (["--training.mixed_precision", "fp16", "--training.device", "cpu"], ["fp16", "GPU"]),
        (["--optimizer.lr", "-0.1"], ["optimizer.lr"]),
        (["--data.image_size", "64"], ["image_size", "64", "18"]),
        (["--training.max_steps", "null"], ["training.max_steps is null: it must be a whole number, 1 or more\n"]),
        (["--training.seed", "-1"], ["training.seed is -1: it must be a whole number from 0 to 4294967295\n"]),
        (["--training.seed", "99999999999999999999"], ["training.seed is 99999999999999999999: it must be a whole"]),
        (["--training.output_dir", ""], ["training.output_dir is ''", "text that is not empty\n"]),
        (
            ["--training.output_dir", "/dev/null/run"],
            ["/dev/null/run cannot be made", "/dev/null is not a folder"],
        ),
        (["--training.output_dir", "/proc/run"], ["/proc/run cannot be written or read (No such file or directory)\n"]),
        (["--training.output_dir", "x" * 300], ["output_dir: xxx", "xxx cannot be used (File name too long)"]),
        (["--training.max_grad_norm", "0"], ["max_grad_norm is 0.0: it must be a finite number above 0 or null\n"]),
        (["--training.ema_decay", "1"], ["ema_decay is 1.0: it must be a finite number between 0 and 1 or null\n"]),
        (["--data.num_workers", "-1"], ["data.num_workers is -1: it must be a whole number, 0 or more\n"]),
        (["--data.source.split_seed", "-1"], ["data.source.split_seed is -1: it must be a whole number from 0 to"]),
        (["--data.target.test_fraction", "2"], ["data.target.test_fraction is 2.0: it must be a finite number betw"]),
        (["--model.bottleneck_dim", "0"], ["model.bottleneck_dim is 0: it must be a whole number, 1 or more or null"]),
        (["--model.backbone", ""], ["model.backbone is '': it must be text that is not empty or a mapping\n"]),
        (["--optimizer.warmup_steps", "-1"], ["optimizer.warmup_steps is -1: it must be a whole number, 0 or more"]),
        (["--optimizer.lr", "nan"], ["optimizer.lr is nan: it must be a finite number, 0 or more\n"]),
        (["--optimizer.lr", ".nan"], ["optimizer.lr is nan: it must be a finite number, 0 or more\n"]),
        (["--optimizer.lr", ".inf"], ["optimizer.lr is inf: it must be a finite number, 0 or more\n"]),
        (["--optimizer.name", "adam"], ["optimizer.name is adam: it must be one of sgd, adamw\n"]),
        (["--optimizer.name", "null"], ["optimizer.name is null: it must be one of sgd, adamw\n"]),
        (["--training.resume", "maybe"], ["run holds no run to go on with; use auto or never\n"]),
        (["--training.trackers", "3"], ["training.trackers is 3: it must be a list of text (numbers in quotes)\n"]),
        (["--training.seed", ""], ["training.seed is '': it must be a whole number"]),
        (["--training", "3"], ["training must be a section with keys, not 3"]),
        (["--hub.attempts", "0"], ["hub.attempts is 0: it must be a whole number, 1 or more\n"]),
        (["--hub.retry_seconds", "-1"], ["hub.retry_seconds is -1.0: it must be a finite number, 0 or more\n"]),
        (["--training.seed"], ["training.seed", "lacks its value"]),
        (["--training.baseline", "--training.seed", "1"], ["--training.baseline lacks its value; write", "e true\n"]),
        (["--print_config"], ["unknown key 'print_config'"]),
        (["training.seed", "1"], ["training.seed", "--section.key"]),
        (["run.yaml"], ["'run.yaml' was not expected; did you mean --config run.yaml?\n"]),
        (["--data.source", "folder:photos"], ["did you mean imagefolder:photos? valid: mnist"]),
        (["--training.trackers", "[no_such_tracker]"], ["no_such_tracker"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value[0].startswith("-") else None,
)
def test_a_wrong_option_is_told(options, words, capsys, tmp_path):
    error = train_refused(capsys, tmp_path, *options)
    assert all(word in error for word in words), error


def test_a_domain_without_its_kind_is_told_with_the_kind(capsys, tmp_path):
    folder, file = tmp_path / "my photos", tmp_path / "boxes.json"
    folder.mkdir()
    file.write_text("{}")
    assert f"did you mean imagefolder:{folder}?" in train_refused(capsys, tmp_path, "--data.source", str(folder))
    assert f"did you mean coco:{file}?" in train_refused(capsys, tmp_path, "--data.target", str(file))


def test_a_misspelt_folder_of_a_run_is_told_with_the_nearest_one(capsys, tmp_path, monkeypatch):
    (tmp_path / "runs/warehouse").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for misspelt in ("runs/warehous", "./runs/warehous"):  # the first might be a repository of the Hub
        error = refused(capsys, "evaluate", misspelt, "--data", "mnist")
        assert error.endswith("there is no such folder; did you mean runs/warehouse?\n")


def test_a_configuration_made_or_changed_in_python_is_checked_too(tmp_path):
    with pytest.raises(UserError, match=r"optimizer\.lr is '1': it must be a finite number, 0 or more"):
        OptimizerConfig(lr="1")
    config = load_config(TINY, {"training.output_dir": str(tmp_path / "run")})
    config.data.target.split_seed = None
    with pytest.raises(UserError, match=r"data\.target\.split_seed is null"):
        adapt(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_asked_for_and_absent(capsys, tmp_path):
    assert "cuda" in train_refused(capsys, tmp_path, "--training.device", "cuda")


def test_fsdp_asked_for_where_accelerate_cannot_shard(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert "--use_fsdp" in train_refused(capsys, tmp_path, "--training.device", "cpu")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {source: mnist, target: mnist_m}\ntrainig: {max_steps: 3}\n", ["trainig", "training"]),
        ("data: {source: mnist, target: mnist_m, resize: 3}\n", ["data.resize", "data.resize_size"]),
        ("data: {source: {kind: digits, nmae: mnist}, target: mnist_m}\n", ["data.source.nmae", "data.source.name"]),
        ("data: {source: mnist}\n", ["data.target is missing"]),
        ("data: [1, 2\n", ["not valid YAML"]),
        ("- 1\n", ["must hold sections"]),
        ("data: 3\n", ["data must be a section"]),
        ("data:\n", ["data.source is missing"]),
        ("data: " + "[" * 5000 + "]" * 5000, ["run.yaml is nested too deeply"]),
        ("data: &a {source: *a}\n", ["run.yaml is nested too deeply, or contains itself"]),
        ("training:\n  max_steps: 3\n  max_steps: 4\n", ["run.yaml, line 3: key 'max_steps' stands twice"]),
        ("data: {source: {list: }, target: mnist}\n", ["domain 'list:' has no path"]),
        ("data: {source: {imagefolder: /no/photos}, target: mnist}\n", ["the folder /no/photos does not exist"]),
    ],
)
def test_a_wrong_configuration_file_is_told(text, words, capsys, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    error = refused(capsys, "train", "--config", str(path))
    of_the_whole = any(word in words[0] for word in ("missing", "no path", "does not exist"))
    assert all(word in error for word in [*words, "" if of_the_whole else "run.yaml"]), error


def test_a_configuration_file_in_another_encoding_is_told(capsys, tmp_path):
    text = "data: {source: mnist, target: mnist_m}\ntraining: {max_steps: 0}  # 3 \u20ac\n"
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-16")
    assert "run.yaml is not UTF-8 text (UTF-16); save it as UTF-8" in refused(capsys, "train", "--config", str(path))
    path.write_text(text, encoding="utf-8-sig")
    assert "training.max_steps is 0" in refused(capsys, "train", "--config", str(path))


def test_a_missing_configuration_file_is_told(capsys):
    assert "none.yaml" in refused(capsys, "train", "--config", "none.yaml")


def test_an_unknown_licence_is_noted_when_the_run_starts(capsys, tmp_path):
    options = ["--training.output_dir", str(tmp_path / "run"), "--training.max_steps", "1", "--hub.license", "apache2"]
    assert run(["train", "--config", TINY, *options]) == 0
    said, _, rest = capsys.readouterr().out.replace("\n", " ").partition("before:")
    assert (
        "Note: 'apache2' is not among the licences of the Hub" in said and "did you mean apache-2.0?" in said and rest
    )
    assert license_notes("apache-2.0") == license_notes(None) == []


def test_another_run_is_never_overwritten(capsys, tmp_path):
    output = tmp_path / "run"
    arguments = ["train", "--config", TINY, "--training.output_dir", str(output), "--training.max_steps", "1"]
    assert run(arguments) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert "holds another run" in refused(capsys, *arguments)
    assert "finished" in refused(capsys, *arguments, "--training.resume", "true")
    changed = refused(capsys, *arguments, "--training.resume", "true", "--optimizer.lr", "0.5")
    assert "optimizer.lr" in changed and "0.5" in changed
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_a_folder_with_other_things_is_not_used(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    assert "not empty" in refused(capsys, "train", "--config", TINY, "--training.output_dir", str(tmp_path / "run"))


def test_an_unreadable_image_stops_the_run_by_name(capsys, tmp_path):
    for domain in ("a", "b"):
        for name in ("cat", "dog"):
            for number in range(10):
                path = tmp_path / domain / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 20), (number, 50, 50)).save(path)
    for number in range(10):
        (tmp_path / "b" / "cat" / f"{number}.png").write_bytes(b"broken")
    domains = ["--data.source", f"imagefolder:{tmp_path}/a", "--data.target", f"imagefolder:{tmp_path}/b"]
    error = refused(capsys, "train", "--config", TINY, "--training.output_dir", str(tmp_path / "run"), *domains)
    assert "b/cat/" in error and "cannot be read" in error


def test_a_diverging_run_stops_with_advice(capsys, tmp_path):
    error = refused(
        capsys, "train", "--config", TINY, "--training.output_dir", str(tmp_path / "run"), "--optimizer.lr", "1e30"
    )
    assert "diverged" in error and "optimizer.lr" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "/no/such/run", "--data", "mnist"], ["/no/such/run"]),
        (["evaluate", "/no/such/run"], ["--data"]),
        (["evaluate", "x", "--data", "mnist", "--data.domian", "3"], ["data.domian", "data.domain"]),
        (["evaluate", "x", "--data", "mnist", "--split", "validation"], ["validation"]),
        (["predict", "/no/such/run", "/no/such.png"], ["/no/such.png"]),
        (["predict", "/no/such/run"], ["images"]),
        (["export", "/no/such/run", "native"], ["/no/such/run"]),
        (["adapt"], ["adapt", "train"]),
    ],
)
def test_the_other_commands_tell_what_is_wrong(arguments, words, capsys):
    error = refused(capsys, *arguments)
    assert all(word in error for word in words), error


def test_a_checkpoint_that_lacks_tensors_is_told_in_one_line_without_a_table(capfd, tmp_path):
    """Transformers writes a table of some twenty lines to stderr before anybody can say which line matters."""
    settings = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    ViTForImageClassification(ViTConfig(**settings, intermediate_size=12)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    state = load_file(tmp_path / "vit" / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if ".1." not in name}
    save_file(kept, tmp_path / "vit" / "model.safetensors", metadata={"format": "pt"})
    weights = ["--model.pretrained", "true", "--model.backbone_options", "{}", "--data.image_size", "16"]
    capfd.readouterr()
    error = train_refused(capfd, tmp_path, "--model.backbone", str(tmp_path / "vit"), *weights)
    assert "lacks 16 tensors of the backbone, e.g. vit.layers.1." in error
    error = refused(capfd, "evaluate", str(tmp_path / "vit"), "--data", "mnist")
    assert "16 tensors are missing" in error


def test_output_files_are_not_overwritten(capsys, tmp_path):
    (tmp_path / "table.csv").write_text("precious")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    error = refused(capsys, "predict", "any", str(tmp_path / "x.png"), "--output", str(tmp_path / "table.csv"))
    assert "table.csv exists" in error and (tmp_path / "table.csv").read_text() == "precious"


def test_the_exit_code_reaches_the_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "metaalign_hf.cli", "train", "--config", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
