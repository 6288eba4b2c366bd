"""Input that nobody would write on purpose, unless to do harm: one line, and no more.

Each property runs a few dozen cases every day, and over a thousand in the slow suite (10,400 together).
"""

import io
import json
import random
import shutil
import sys
import tempfile
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from metaalign_hf.cli import run
from metaalign_hf.configuration import DomainConfig, load_config
from metaalign_hf.data import load_domain
from metaalign_hf.data.detection_readers import read_detection_domain
from metaalign_hf.data.images import read_image
from metaalign_hf.errors import UserError
from metaalign_hf.hub.public import public_files
from metaalign_hf.run_folder import PROCESSOR_FILES, RECORD_FILES, WEIGHT_FILES
from metaalign_hf.training.checkpoints import checkpoints, damage, load_checkpoint, read_state, save_checkpoint

many = pytest.mark.parametrize("cases", [40, pytest.param(1300, marks=pytest.mark.slow)])


def tried(cases: int, body, **arguments) -> None:
    """Runs a property; a case that takes ten seconds is a hang."""
    options = settings(
        max_examples=cases,
        deadline=10_000,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    options(given(**arguments)(body))()


def resident(field: str) -> int:
    """Resident memory of this process now (VmRSS), or its peak since it was reset (VmHWM), in bytes."""
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


@contextmanager
def told(limit: int = 400_000_000):
    """What is wrong is told in a `UserError` of one line, and memory does not grow without bounds."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    peak = resident("VmHWM")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError as error:
        assert "\n" not in str(error) or not str(error).isprintable()
        assert len(str(error)) < 12_000, "the value is shown once or twice"
    assert max(resident("VmHWM") - max(before, peak), 0) < limit


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(10**5000, 10**5001),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(
        [
            "1e999",
            "²",
            "../../x",
            "\0",
            "\ud800",
            "x" * 5000,
            "-",
            "2001-99-99",
            "NaN",
            "0x1",
            "~",
            "!!python/name:os.system",
        ]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)


def dumped(value) -> str:
    """JSON, also of numbers that Python writes only when it is allowed to."""
    return json.dumps(value, default=str)


def written(path: Path, value) -> None:
    """The value as a JSON file, which is YAML too."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        path.write_text(dumped(value), encoding="utf-8", errors="replace")
    finally:
        sys.set_int_max_str_digits(before)


@pytest.fixture
def folder(tmp_path):
    """Two class folders of pictures."""
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for shade in range(5):
            Image.new("RGB", (8, 8), (shade, 50 * number, 50)).save(tmp_path / name / f"{shade}.png")
    return tmp_path


SECTIONS = ("data", "model", "coordination", "optimizer", "training", "hub")
KEYS = (
    "source",
    "target",
    "max_steps",
    "alignment",
    "lr",
    "inner_lr",
    "kind",
    "path",
    "resume",
    "max_time",
    "detector",
)


@many
def test_configurations(cases, tmp_path):
    path = tmp_path / "run.yaml"

    def text(content) -> None:
        path.write_bytes(content)
        with told():
            load_config(path)

    def sections(content) -> None:
        written(path, content)
        with told():
            load_config(path)

    entries = st.dictionaries(st.sampled_from(KEYS), values, max_size=4)
    pieces = st.lists(
        st.sampled_from(
            [
                "data: ",
                "{",
                "}",
                "[",
                "]",
                "source",
                ": ",
                "mnist",
                "&a ",
                "*a",
                "\n",
                "  ",
                "- ",
                "!!",
                "!!python/object/apply:os.system ",
                "'",
                '"',
                "|",
                "> ",
                "%",
                "? ",
                "1",
                "<<: ",
                "training:\n  max_steps: ",
                "\t",
                "#",
                "---\n",
                "...\n",
            ]
        ),
        max_size=14,
    ).map(lambda parts: "".join(parts).encode())
    tried(cases // 2, text, content=st.one_of(pieces, st.binary(max_size=60)))
    tried(
        cases - cases // 2,
        sections,
        content=st.dictionaries(st.sampled_from(SECTIONS), st.one_of(values, entries), max_size=4),
    )


def test_anchors_that_stand_for_billions_of_values_are_refused(tmp_path):
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "run.yaml").write_text("data: {source: mnist, target: mnist_m}\nmodel:\n  " + "\n  ".join(rows) + "\n")
    with pytest.raises(UserError, match="too large: its anchors stand for more than"):
        load_config(tmp_path / "run.yaml")


@many
def test_lists(cases, folder):
    def body(lines, raw) -> None:
        (folder / "list.txt").write_bytes(raw if raw is not None else "\n".join(lines).encode("utf-8", "replace"))
        with told():
            load_domain(f"list:{folder}/list.txt")

    names = st.sampled_from(["cat/0.png", "dog/1.png", "cat", "..", "/etc/passwd", "no.png", "x" * 300])
    labels = st.one_of(st.sampled_from(["0", "1", "-1", "²", "٣", "9" * 5000, "--1", "cat"]), st.text(max_size=6))
    row = st.tuples(names, st.sampled_from([" ", "\t", ",", ""]), labels).map("".join)
    tried(cases, body, lines=st.lists(row, min_size=1, max_size=6), raw=st.one_of(st.none(), st.binary(max_size=80)))


@many
def test_coco_files(cases, folder):
    def body(document) -> None:
        written(folder / "boxes.json", document)
        with told():
            read_detection_domain(DomainConfig(kind="coco", annotations=str(folder / "boxes.json")))

    def likely(good):
        return st.one_of(good, good, good, values)

    ids = likely(st.integers(0, 3))
    image = st.fixed_dictionaries(
        {"id": ids, "file_name": likely(st.sampled_from(["cat/0.png", "dog/1.png", "x" * 400, "../x.png"]))},
        optional={"height": likely(st.just(8)), "width": likely(st.just(8))},
    )
    box = likely(st.lists(st.floats(-2, 9), min_size=4, max_size=4))
    annotation = st.fixed_dictionaries(
        {"image_id": ids, "category_id": ids, "bbox": box}, optional={"id": ids, "iscrowd": values}
    )
    category = st.fixed_dictionaries({"id": ids, "name": likely(st.sampled_from(["cat", "dog"]))})
    document = st.fixed_dictionaries(
        {
            "images": st.lists(likely(image), max_size=3),
            "annotations": st.lists(likely(annotation), max_size=4),
            "categories": st.lists(likely(category), max_size=3),
        }
    )
    tried(cases, body, document=st.one_of(document, document, document, values))


BOMB = (
    '<!DOCTYPE a [<!ENTITY a "'
    + "x" * 100
    + '">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(8))
    + "]><annotation><object><name>&i;</name></object></annotation>"
)
FILE = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object></annotation>'
)


@many
def test_voc_files(cases, folder):
    for part in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / part).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "JPEGImages" / "a.png")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\n")

    def body(content) -> None:
        (folder / "Annotations" / "a.xml").write_bytes(content)
        with told():
            found = read_detection_domain(DomainConfig(kind="voc", path=str(folder)))
            assert not any("root:" in name for name in found.labels or ())

    numbers = st.sampled_from(["1", "8", "-3", "²", "nan", "1e999", "", "9" * 5000, "x", "1_0"])
    objects = st.lists(
        st.tuples(st.sampled_from(["cat", "", "  ", "&lt;", "ä"]), numbers, numbers, numbers, numbers), max_size=3
    )

    def xml(parts) -> bytes:
        head, size, rows, tail = parts
        found = "".join(
            f"<object><name>{n}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
            for n, a, b, c, d in rows
        )
        middle = "" if size is None else f"<size><height>{size[0]}</height><width>{size[1]}</width></size>"
        return f"{head}<annotation>{middle}{found}</annotation>{tail}".encode()

    heads = st.sampled_from(
        [
            "",
            "<?xml version='1.0'?>",
            "<?xml version='1.0' encoding='nope'?>",
            "<?xml version='1.0' encoding='utf-16'?>",
            "<!DOCTYPE x>",
        ]
    )
    sizes = st.one_of(st.none(), st.tuples(numbers, numbers))
    built = st.tuples(heads, sizes, objects, st.sampled_from(["", "<", "x", "\0"])).map(xml)
    nested = st.just(b"<a>" * 20_000 + b"</a>" * 20_000)
    tried(
        cases,
        body,
        content=st.one_of(
            built, built, built, st.binary(max_size=60), nested, st.sampled_from([BOMB.encode(), FILE.encode()])
        ),
    )


def encoded(kind: str, mode: str) -> bytes:
    made = io.BytesIO()
    Image.effect_noise((24, 18), 60).convert(mode).save(made, kind)
    return made.getvalue()


ORIGINALS = [
    encoded(kind, mode)
    for kind, mode in [
        ("PNG", "RGB"),
        ("PNG", "LA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("TIFF", "CMYK"),
        ("TIFF", "I;16"),
        ("WEBP", "RGBA"),
        ("PPM", "RGB"),
    ]
]


@many
def test_images(cases, tmp_path):
    path = tmp_path / "image.png"

    def body(original, seed, flips, cut) -> None:
        content, generator = bytearray(original), random.Random(seed)
        for _ in range(flips):
            content[generator.randrange(min(len(content), 200))] = generator.randrange(256)
        path.write_bytes(content[: int(cut * len(content))])
        with told(1_500_000_000):
            image = read_image(path)
            assert image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3

    tried(
        cases,
        body,
        original=st.sampled_from(ORIGINALS),
        seed=st.integers(0, 2**32),
        flips=st.integers(0, 12),
        cut=st.sampled_from([0.0, 0.3, 0.7, 0.98, 1.0, 1.0, 1.0]),
    )


def test_an_image_that_unpacks_to_gigabytes_is_refused(tmp_path):
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    packed = chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + packed + chunk(b"IEND", b""))
    with told(100_000_000), pytest.raises(UserError, match="bomb.png cannot be read"):
        read_image(tmp_path / "bomb.png")


@many
def test_checkpoints_of_a_run(cases, tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    whole = save_checkpoint(tmp_path / "whole", 3, {"model": model}, optimizer, {"more": 1}, 1)
    before = {path.name for path in tmp_path.iterdir()}

    def body(name, how, seed, with_sums) -> None:
        run_folder = Path(tempfile.mkdtemp(dir=tmp_path))
        folder = run_folder / "checkpoints" / "step-000003"
        shutil.copytree(whole, folder)
        file, generator = folder / name, random.Random(seed)
        content = bytearray(file.read_bytes())
        if how == "cut":
            file.write_bytes(content[: generator.randrange(len(content))])
        elif how == "flip":
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            file.write_bytes(content)
        elif how == "pickle":
            torch.save({"weight": torch.zeros(2)}, file)
        elif how == "json":
            file.write_text(generator.choice(["{}", "[]", "null", '{"step": "x"}', "[" * 50_000, '{"step": 1e999}']))
        elif how == "gone":
            file.unlink()
        assert damage(folder) is not None or how == "none" or bytes(content) == (whole / name).read_bytes()
        if not with_sums:
            (folder / "sha256.json").unlink(missing_ok=True)
        with told():
            assert checkpoints(run_folder) == [folder]
            damage(folder)
            read_state(folder)
            load_checkpoint(folder, {"model": nn.Linear(3, 2)}, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
        shutil.rmtree(run_folder)

    tried(
        cases,
        body,
        name=st.sampled_from(["model.safetensors", "optimizer.safetensors", "state.json"]),
        how=st.sampled_from(["cut", "flip", "pickle", "json", "gone", "none"]),
        seed=st.integers(0, 2**32),
        with_sums=st.booleans(),
    )
    assert {path.name for path in tmp_path.iterdir()} == before, "nothing is written elsewhere"


@many
def test_names_of_pushed_files(cases, tmp_path):
    """Only names of the allow-list leave the machine, whatever lies in the folder."""
    known = {"config.json", *PROCESSOR_FILES, *RECORD_FILES}

    def body(names) -> None:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for name in names:
            (folder / name).write_text("{}")
        with told():
            for name in public_files(folder, folder):
                assert name in known or WEIGHT_FILES.fullmatch(name)
                assert "/" not in name and ".." not in name
        shutil.rmtree(folder)

    pieces = st.sampled_from(
        [
            "model",
            ".safetensors",
            "-00001-of-00002",
            "..",
            ".bin",
            ".index.json",
            "\n",
            "config.json",
            "training_config.yaml",
            " ",
            "ä",
            ".pt",
            "optimizer",
            ".env",
            "log.txt",
            "run.json",
        ]
    )
    name = (
        st.lists(pieces, min_size=1, max_size=4)
        .map("".join)
        .filter(lambda text: text not in (".", "..") and len(text.encode()) < 200)
    )
    tried(cases, body, names=st.lists(name, max_size=5, unique=True))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An adapted model."""
    from tests.helpers.runs import train

    output = tmp_path_factory.mktemp("runs") / "run"
    train(output, "--training.source_steps", "0", "--training.max_steps", "1", "--training.select_by", "null")
    return output


@pytest.mark.parametrize("cases", [12, pytest.param(1300, marks=pytest.mark.slow)])
def test_folders_of_models(cases, saved, tmp_path, capsys, monkeypatch):
    """`predict` on what was made of a model's folder: an answer, or one line; and no code of it is ever run."""
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody is asked whether to run its code"))
    ran = tmp_path / "ran"

    def body(name, how, seed) -> None:
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "model"
        folder.mkdir()
        for file in ("config.json", "preprocessor_config.json", "model.safetensors"):
            shutil.copyfile(saved / file, folder / file)
        file, generator = folder / name, random.Random(seed)
        content = bytearray(file.read_bytes())
        if how == "cut":
            file.write_bytes(content[: generator.randrange(len(content))])
        elif how == "flip":
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            file.write_bytes(content)
        elif how == "gone":
            file.unlink()
        elif how == "pickle":
            torch.save({}, folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
        elif how == "value":
            edited = json.loads((folder / "config.json").read_text())
            key = generator.choice(sorted(edited))
            edited[key] = generator.choice([None, -1, 10**12, "x", [], {}, {"model_type": "resnet"}, True])
            (folder / "config.json").write_text(json.dumps(edited))
        elif how == "code":
            (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n")
            for part in ("config.json", "preprocessor_config.json"):
                edited = json.loads((folder / part).read_text())
                edited["auto_map"] = dict.fromkeys(
                    ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor"), "evil.Evil"
                )
                if generator.random() < 0.5:
                    edited["model_type"] = "evil"
                    edited["image_processor_type"] = "Evil"
                (folder / part).write_text(json.dumps(edited))
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = run(["predict", str(folder), str(tmp_path / "image.png")])
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("metaalign: ")]
        assert code in (0, 2) and "Traceback" not in error and len(lines) == (code == 2), error
        assert not ran.exists()
        shutil.rmtree(folder.parent)

    tried(
        cases,
        body,
        name=st.sampled_from(["config.json", "preprocessor_config.json", "model.safetensors"]),
        how=st.sampled_from(["cut", "flip", "gone", "pickle", "value", "code"]),
        seed=st.integers(0, 2**32),
    )
