"""Images: every form that a row may have, and images that cannot be read."""

import base64
import csv
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, ViTImageProcessorPil

from trainer_loop import TrainingLoop, UserError, build, load_config
from trainer_loop.cli.predict import main as predict
from trainer_loop.data import images
from trainer_loop.data.processors import load_image_processor, make_image_processor
from trainer_loop.record.logs import Console
from trainer_loop.tasks.image_classification import ImageClassification

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def make_image(name: str) -> Image.Image:
    return Image.new("RGB", (5, 4), COLOURS[name])


def spell(image: Image.Image, *, kind: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, kind)
    return file.getvalue()


def make_rows(form: str, folder: Path) -> list[dict[str, Any]]:
    """Rows whose images have this form."""
    rows = []
    for number, label in enumerate(["red", "blue", "red", "blue"]):
        image = make_image(label)
        content, path = spell(image), folder / f"{number}.png"
        path.write_bytes(content)
        forms = {
            "path": str(path),
            "bytes": content,
            "data URI": f"data:image/png;base64,{base64.b64encode(content).decode()}",
            "datasets, bytes": {"bytes": content, "path": None},
            "datasets, path": {"bytes": None, "path": str(path)},
            "PIL": image,
        }
        rows.append({"image": forms[form], "label": label})
    return rows


def make_loop(folder: Path, *overrides: str, rows: dict[str, Any] | None = None) -> TrainingLoop:
    sizes = "image_size: 8, patch_size: 4, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2"
    config = load_config(
        None,
        [
            "task.name=image_classification",
            f"model={{type: vit, overrides: {{{sizes}, intermediate_size: 16}}}}",
            f"data.cache_dir={folder / 'cache'}",
            "batch.size=4",
            "train={steps: 1, precision: no, threads: 1}",
            "data.label_names=[blue, red]",
            "checkpoint.every=1",
            f"run_dir={folder / 'run'}",
            *overrides,
        ],
    )
    return build(config, rows=rows, console=Console(enabled=False))


def read_pixels(loop: TrainingLoop) -> torch.Tensor:
    (step,) = loop.data.train.steps(start=0, stop=1)
    (microbatch,) = step.microbatches
    order = microbatch.batch["labels"].argsort(stable=True)
    return microbatch.batch["pixel_values"][order]


@pytest.mark.parametrize("form", ["path", "bytes", "data URI", "datasets, bytes", "datasets, path", "PIL"])
def test_an_image_in_any_form_has_the_same_pixels(form: str, tmp_path: Path):
    pixels = read_pixels(make_loop(tmp_path, rows={"train": make_rows(form, tmp_path)}))
    assert pixels.shape == (4, 3, 8, 8)
    blue, red = pixels[:2], pixels[2:]
    assert torch.equal(blue[:, 2], torch.ones(2, 8, 8))
    assert torch.equal(blue[:, 0], -torch.ones(2, 8, 8))
    assert torch.equal(red[:, 0], torch.ones(2, 8, 8))


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_parquet_file_of_images_is_read_in_memory_and_streamed(streaming: str, tmp_path: Path):
    rows = make_rows("bytes", tmp_path)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "red"])})
    table = {"img": [row["image"] for row in rows], "label": [row["label"] for row in rows]}
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "train.parquet")
    named = [f"data.train={tmp_path / 'train.parquet'}", "data.columns.image=img", f"data.streaming={streaming}"]
    pixels = read_pixels(make_loop(tmp_path, *named))
    assert torch.equal(pixels[:2, 2], torch.ones(2, 8, 8))
    assert torch.equal(pixels[2:, 0], torch.ones(2, 8, 8))


def write_broken(folder: Path) -> dict[str, tuple[Any, str]]:
    """Values that are no images, and what is said of them."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    (folder / "cut.jpg").write_bytes(spell(noise, kind="JPEG")[:-900])
    (folder / "text.png").write_text("no image")
    Image.new("F", (4, 4), 0.5).save(folder / "floats.tiff")
    return {
        "gone": (str(folder / "gone.png"), "names the image"),
        "cut": (str(folder / "cut.jpg"), "has an image that cannot be read: image file is truncated"),
        "text": (str(folder / "text.png"), "for an image, which is of no kind that Pillow knows"),
        "base64": ("data:image/png;base64,###", "holds a data URI that is no base64"),
        "no bytes": ("data:image/png;base64,", "holds a data URI without base64"),
        "floats": (str(folder / "floats.tiff"), "has an image of mode F, whose range is not known"),
        "empty": ("", "holds no image but ''; allowed: a path, a data URI, or bytes"),
    }


@pytest.mark.parametrize("name", ["gone", "cut", "text", "base64", "no bytes", "floats", "empty"])
def test_an_image_that_cannot_be_read_is_refused_with_its_row(name: str, tmp_path: Path):
    value, told = write_broken(tmp_path)[name]
    rows = make_rows("path", tmp_path)
    rows[2]["image"] = value
    with pytest.raises(UserError) as refused:
        make_loop(tmp_path, rows={"train": rows})
    (problem,) = refused.value.problems
    assert told in problem
    assert "row 3" in problem


def test_any_mode_becomes_rgb_and_an_image_stands_upright(tmp_path: Path):
    task = ImageClassification()
    task.bind(ViTImageProcessorPil(size={"height": 4, "width": 4}), label_names=["a"])
    grey, clear = Image.new("L", (4, 4), 255), Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    lying = Image.new("RGB", (4, 2), (0, 0, 0))
    lying.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # its camera lay on its side
    file = BytesIO()
    lying.save(file, "PNG", exif=exif)
    encoded = task.encode({"image": [spell(grey), spell(clear), file.getvalue()]}, max_length=0)
    rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    pixels = task.collate(rows)["pixel_values"]
    assert torch.equal(pixels[0], torch.ones(3, 4, 4))
    assert torch.equal(pixels[1, 1], -torch.ones(4, 4))
    assert pixels[2, 0, 0, 3] > 0 > pixels[2, 0, 0, 0]  # the bright corner is at the right


def test_a_type_without_an_image_processor_is_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"transformers has no image processor for a bert; name one in model.tokenizer"):
        make_loop(tmp_path, "model={type: bert, overrides: null}", rows={"train": make_rows("path", tmp_path)})


def test_a_model_of_images_with_another_number_of_channels_is_told(tmp_path: Path):
    told = r"^model: the config has num_channels 1, and images are read with 3; .*set model.overrides.num_channels=3$"
    with pytest.raises(UserError, match=told):
        make_loop(tmp_path, "model.overrides.num_channels=1", rows={"train": make_rows("path", tmp_path)})


def test_sixteen_bits_are_scaled_to_eight():
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    decoded = images.decode(spell(Image.fromarray(values)), "")
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 100, 255]


def test_an_image_that_was_changed_in_python_is_used_as_it_is(tmp_path: Path):
    make_image("red").save(tmp_path / "red.png")
    painted = Image.open(tmp_path / "red.png")
    painted.paste(COLOURS["blue"], (0, 0, 5, 4))
    rows = [{"image": painted, "label": "blue"}, {"image": make_image("red"), "label": "red"}] * 2
    pixels = read_pixels(make_loop(tmp_path, rows={"train": rows}))
    assert torch.equal(pixels[:2, 2], torch.ones(2, 8, 8))


def test_an_image_that_was_damaged_since_is_told_with_its_path(tmp_path: Path):
    rows = make_rows("path", tmp_path)
    loop = make_loop(tmp_path, rows={"train": rows})
    path = Path(rows[1]["image"])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(spell(noise, kind="JPEG")[:-900])
    with pytest.raises(UserError, match=rf"the image {path} cannot be read any more"):
        loop.fit()


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path):
    rows = make_rows("path", tmp_path)
    make_loop(tmp_path, rows={"train": rows}).fit()
    noise = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(rows[1]["image"])
    with pytest.raises(UserError, match="data"):
        make_loop(tmp_path, "train.steps=2", rows={"train": rows}).fit()


def test_a_folder_of_images_is_predicted_as_each_of_them_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    make_loop(tmp_path, rows={"train": make_rows("path", tmp_path)}).fit()
    for name in ("blue", "red"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        make_image(name).save(tmp_path / "photos" / name / "1.png")
    model = f"model={tmp_path / 'run'}"
    assert predict([model, f"image={tmp_path / 'photos'}"]) == 0
    out = capfd.readouterr().out
    assert re.search(r"accuracy +[0-9.]+\n +rows +2\n", out), "the folders are labels"
    with (tmp_path / "run" / "predictions" / "photos.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["image"] for row in written] == [str(tmp_path / f"photos/{name}/1.png") for name in ("blue", "red")]
    for row in written:
        assert predict([model, f"image={row['image']}"]) == 0
        alone = f"label={row['predicted_label']} probability={float(row['probability']):.4f}\n"
        assert capfd.readouterr().out == alone


def test_an_image_processor_that_is_not_there_is_told_as_a_tokenizer_is(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "file").touch()
    for name, expected in {
        str(tmp_path / "file"): "{} is a file; name the folder that it is in",
        str(tmp_path / "modle"): f"{{}}: there is no such folder; did you mean {tmp_path / 'model'}?",
        "lab/no-such-model": "{}: HF_HUB_OFFLINE is set and it is not in the cache; name a local folder, or fill the "
        "cache with transformers.AutoImageProcessor.from_pretrained('lab/no-such-model') where there is network",
    }.items():
        with pytest.raises(UserError) as caught:
            load_image_processor(name, trust_remote_code=False)
        assert caught.value.problems == [expected.format(f"image processor {name}")]
    with pytest.raises(UserError, match=r"image processor .*model cannot be loaded: "):
        load_image_processor(str(tmp_path / "model"), trust_remote_code=False)
    with pytest.raises(UserError, match=r"image processor: ~no-such-user/model: there is no such home directory"):
        load_image_processor("~no-such-user/model", trust_remote_code=False)


@pytest.mark.parametrize(
    "kind", ["vit", "deit", "clip_vision_model", "convnext", "mobilenet_v2", "dinov2", "swin", "beit"]
)
def test_the_processor_of_a_new_model_makes_images_of_its_size(kind: str):
    config = AutoConfig.for_model(kind)
    config.image_size = 32
    try:
        processor = make_image_processor(config)
    except UserError as refused:
        assert "name a processor in model.tokenizer" in str(refused) or "no image processor" in str(refused)  # noqa: PT017
        return
    white = Image.new("RGB", (50, 70), (255, 255, 255))
    pixels = processor(images=[white], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    assert (pixels == pixels[..., :1, :1]).all()  # the image fills it


# ---- mixup

MIXED = ("task.args={mixup: 0.4}", "train.steps=3", "optimizer={name: sgd, lr: 0.5}")
NO_DROPOUT = "model.overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"


def test_an_update_on_mixed_images_does_not_depend_on_how_it_is_cut(tmp_path: Path):
    rows = {"train": make_rows("bytes", tmp_path) * 3}
    weights = []
    for number, cut in enumerate(("batch.per_device=null", "batch.per_device=1", "batch.per_device=3")):
        given = (*MIXED, NO_DROPOUT, "batch.size=5", cut, f"run_dir={tmp_path / str(number)}")
        loop = make_loop(tmp_path, *given, rows=rows)
        loop.fit()
        weights.append([weight.detach().clone() for weight in loop.bare_model.parameters()])
    for other in weights[1:]:
        for one, same in zip(weights[0], other, strict=True):
            torch.testing.assert_close(same, one, rtol=1e-5, atol=1e-6)


def test_each_row_is_mixed_with_a_training_row_by_the_share_of_the_step(tmp_path: Path):
    loop = make_loop(tmp_path, *MIXED, rows={"train": make_rows("bytes", tmp_path)})
    plain = make_loop(tmp_path, rows={"train": make_rows("bytes", tmp_path)})
    pixels = {int(label): image for label, image in zip([0, 0, 1, 1], read_pixels(plain), strict=True)}
    shares = []
    for step in loop.data.train.steps(start=0, stop=3):
        (batch,) = (microbatch.batch for microbatch in step.microbatches)
        (share,) = set(batch["share"].tolist())
        shares.append(share)
        for image, label, partner in zip(
            batch["pixel_values"], batch["labels"].tolist(), batch["partner_labels"].tolist(), strict=True
        ):
            torch.testing.assert_close(image, share * pixels[label] + (1 - share) * pixels[partner])
        logits = loop.model(pixel_values=batch["pixel_values"]).logits.log_softmax(-1)
        by_hand = -sum(
            share * row[label] + (1 - share) * row[partner]
            for row, label, partner in zip(logits, batch["labels"], batch["partner_labels"], strict=True)
        )
        torch.testing.assert_close(loop.task.loss(loop.bare_model.eval(), batch), by_hand)
        assert loop.task.count(batch) == 4
    assert len(set(shares)) == 3 and all(0 <= share <= 1 for share in shares)


def test_an_evaluation_mixes_nothing_and_a_step_is_mixed_alike_each_time(tmp_path: Path):
    rows = make_rows("bytes", tmp_path)
    validated = (*MIXED, "evaluate.every=3")
    loop = make_loop(tmp_path, *validated, rows={"train": rows, "validation": rows})
    (microbatch,) = loop.data.validation[""]
    assert "share" not in microbatch.batch
    again = make_loop(tmp_path, *validated, rows={"train": rows, "validation": rows})
    batches = [
        microbatch.batch
        for each in (loop, again)
        for step in each.data.train.steps(start=2 if each is loop else 0, stop=3)
        for microbatch in step.microbatches
    ]
    assert batches[0]["pixel_values"].equal(batches[-1]["pixel_values"])
    assert not batches[0]["pixel_values"].equal(batches[1]["pixel_values"])


@pytest.mark.parametrize("mixup", [0, -1, float("nan"), float("inf")])
def test_a_mixup_that_is_not_above_0_or_not_finite_is_refused(mixup: float):
    with pytest.raises(UserError, match=r"task\.args\.mixup: .*: it must be a number above 0, such as 0\.2, or null"):
        ImageClassification(mixup=mixup)


@pytest.mark.parametrize("mixup", ["true", "much"])
def test_a_mixup_that_is_no_number_is_refused(mixup: str, tmp_path: Path):
    with pytest.raises(UserError, match=rf"(?i)task\.args\.mixup: '?{mixup}'? is not a number or null"):
        make_loop(tmp_path, f"task.args={{mixup: {mixup}}}", rows={"train": make_rows("bytes", tmp_path)})


def test_mixup_is_refused_with_keys_that_weigh_or_draw_rows(tmp_path: Path):
    rows = {"train": make_rows("bytes", tmp_path)}
    sources = "[{name: a, train: a.jsonl, weight: 1}, {name: b, train: b.jsonl, weight: 1}]"
    told = "the task image_classification mixes each row with any other, all alike; leave one out"
    for keys in (["data.weight=trust", "data.sampling=balanced"], [f"data.mixture={sources}"]):
        with pytest.raises(UserError) as refused:
            make_loop(tmp_path, *MIXED, *keys, rows=rows)
        names = [key.partition("=")[0] for key in keys]
        assert [line for line in refused.value.problems if told in line] == [f"{name}: {told}" for name in names]


def test_a_stream_mixes_nothing(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"data\.streaming: the task image_classification mixes each row with any other"
    ):
        make_loop(tmp_path, *MIXED, "data.streaming=true", "data.train=rows.jsonl")
