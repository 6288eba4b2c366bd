"""Runs every code block of docs/*.md and of the packaged skill file, page by page, in the current folder.

python run_blocks.py DOCS TINY.yaml

What a reader would bring stands ready: folders of photos, `examples/digits.yaml` (small here), a run in `runs/digits`.
Names of pretrained models are replaced by tiny ones. Training commands run where others build on them; otherwise their
options are parsed. Of commands that take long only the name is tried.
"""

import re
import shlex
import shutil
import sys
import traceback
from pathlib import Path

import yaml

from metaalign_hf import parse_config
from metaalign_hf.cli import run
from metaalign_hf.commands.skills import SKILL
from tests.helpers.squares import write_squares

DOCS, TINY = Path(sys.argv[1]), sys.argv[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
RUN = ("evaluate", "predict", "export", "push", "runs", "skills")
SMALL = ["--config", TINY, "--training.source_steps", "1", "--training.max_steps", "2"]
STAND_INS = {
    "range(1500)": "range(200)",  # a guide's images: fewer will do
    "range(2500, 4000)": "range(2500, 2700)",
    "range(300)": "range(60)",
    '"PekingU/rtdetr_r50vd"': '{"model_type": "d_fine", "num_queries": 7, "encoder_hidden_dim": 32, "d_model": 32, '
    '"decoder_in_channels": [32, 32, 32], "encoder_in_channels": [12, 16, 20], "decoder_layers": 2, '
    '"decoder_attention_heads": 4, "encoder_attention_heads": 4, "decoder_ffn_dim": 32, "encoder_ffn_dim": 32, '
    '"backbone_config": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": '
    '[1, 1, 1, 1], "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]}}, pretrained=False',
}


def prepare() -> None:
    squares = write_squares(Path("squares"))
    for name, made in {"studio": "source", "warehouse": "target", "labelled_sample": "tests", "new": "bare"}.items():
        shutil.copytree(squares / made, Path("photos", name))
    Path("examples").mkdir()
    shutil.copyfile(TINY, "examples/digits.yaml")
    shutil.copyfile(TINY, "run.yaml")
    assert run(["train", *SMALL, "--training.output_dir", "runs/digits"]) == 0


def command(words: list[str]) -> None:
    if words[0] in ("pip", "make"):
        return
    if words[0] == "accelerate":
        words = ["metaalign", "train", *words[words.index("scripts/train.py") + 1 :]]
    assert words[0] == "metaalign", words
    if words[1:3] == ["data", "check"] and "--no-model" in words:
        assert run(words[1:]) == 0, words
        return
    if words[1] not in ("train", *RUN):
        assert run([words[1], "--help"]) == 0, words
        return
    output = words[words.index("--training.output_dir") + 1] if "--training.output_dir" in words else None
    if words[1] in RUN:
        known = Path(words[2]).is_dir() or not words[2].startswith("runs/")
        # A detector's run would take too long: what is left to see is that the options are known.
        assert run(words[1:]) == (0 if known else 2), words
    elif output == "runs/warehouse" and not Path(output).exists():
        given = [word for word in words[2:] if not word.startswith(("timm/", "--model.backbone"))]
        assert run(["train", *SMALL, *given]) == 0, words
    elif output == "runs/plates" and not Path(output).exists():  # the guide, whose folders an earlier block has made
        assert run([*words[1:], "--training.source_steps", "1", "--training.max_steps", "2"]) == 0, words
    else:
        parse_config(words[2:])


def run_page(page: Path) -> None:
    names: dict[str, object] = {"__name__": page.stem}
    for language, block in BLOCK.findall(page.read_text()):
        if language == "python":
            for name, stand_in in STAND_INS.items():
                block = block.replace(name, stand_in)
            exec(compile(block, page.name, "exec"), names)
        elif language == "sh":
            Path("predictions.csv").unlink(missing_ok=True)
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    command(words)
        elif language == "yaml":
            assert yaml.safe_load(block)
        else:
            raise AssertionError(f"a block in {language or 'no language'}, which nothing runs")


def main() -> None:
    prepare()
    # The quickstart first: it trains what other pages use.
    pages = [*DOCS.glob("*.md"), SKILL]
    failed = []
    for page in sorted(pages, key=lambda page: (page.name != "index.md", page.name)):
        print(f"--- {page.name}", flush=True)
        try:
            run_page(page)
        except Exception:
            traceback.print_exc()
            failed.append(page.name)
    if failed:
        raise SystemExit(f"blocks of these pages do not run: {', '.join(failed)}")


if __name__ == "__main__":
    main()
