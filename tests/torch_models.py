"""Fetches tiny networks of random weights from a folder laid out like the hub: test_soak_hubs.py runs it by PyTorch.

`python torch_models.py FOLDER` prints one JSON object: for each case what was written, or the line that refused it.
"""

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from happywhale_nb.core.errors import UserError
from happywhale_nb.demo.probe import draw_probe
from happywhale_nb.networks import hub_models
from happywhale_nb.networks.encoders import open_encoder
from happywhale_nb.networks.hub_models import fetch_encoder
from happywhale_nb.networks.ready_cards import parse_ready_card

HERE = Path(sys.argv[1])
HUB, MARK = HERE / "hub", HERE / "mark"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
APACHE, NONCOMMERCIAL = "license: apache-2.0", "license: cc-by-nc-4.0"


class Harmful:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (MARK,)


def unlike_new(network):
    """A network whose BatchNorms have seen something."""
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.2)
    return network.eval()


def timm_config(architecture, size, classes=0, **more):
    pictures = {"input_size": [3, size, size], **IMAGENET, "interpolation": "bicubic", "num_classes": classes}
    head = {"classifier": "classifier" if "efficientnet" in architecture else "head", "license": "mit"}
    own = {**pictures, **head, "fixed_input_size": "efficientnet" not in architecture}
    return {"architecture": architecture, "num_classes": classes, "pretrained_cfg": own, **more}


def put(name, config, tensors, head=APACHE, checkpoint=False, **files):
    """A repository; `checkpoint`: its weights are a pickle."""
    folder = HUB / name
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\n{head}\n---\n")
    for file, values in {"config": config, **files}.items():
        (folder / f"{file}.json").write_text(json.dumps(values))
    if checkpoint:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, folder / "model.safetensors")


def fill_hub():
    """Repositories of every kind, and a card for one."""
    torch.manual_seed(0)
    convolution = unlike_new(timm.create_model("test_efficientnet", num_classes=7))
    config, tensors = timm_config("test_efficientnet", 160, 7), convolution.state_dict()
    put("timm/test_efficientnet.r160_in1k", config, tensors)
    put("lab/checkpoint", config, tensors, NONCOMMERCIAL, checkpoint=True)
    put("lab/lacking", config, {name: value for name, value in tensors.items() if name != "conv_stem.weight"})
    put("lab/harmful", config, {"weight": Harmful()}, checkpoint=True)
    put(
        "timm/test_vit.r160_in1k",
        timm_config("test_vit", 160),
        timm.create_model("test_vit", num_classes=0).state_dict(),
    )
    small = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 4]}
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **small)
    config = timm_config("swin_tiny_patch4_window7_224", 224, model_args=small)
    put("lab/swin", config, swin.state_dict(), NONCOMMERCIAL, checkpoint=True)
    fill_with_transformers()
    return put_gem()


def fill_with_transformers():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Dinov2Config(**sizes, image_size=56, patch_size=14)
    pictures = {"do_center_crop": True, "crop_size": {"height": 56, "width": 56}, "resample": 3}
    pictures |= {"image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"]}
    put("lab/dinov2", config.to_dict(), Dinov2Model(config).state_dict(), preprocessor_config=pictures)
    vision = {**sizes, "image_size": 32, "patch_size": 8, "intermediate_size": 64}
    config = CLIPConfig(vision_config=vision, text_config={**sizes, "intermediate_size": 64}, projection_dim=16)
    pictures |= {"crop_size": 32}
    put("lab/clip", config.to_dict(), CLIPModel(config).state_dict(), preprocessor_config=pictures)
    put("lab/code", {"model_type": "own", "auto_map": {"AutoModel": "own.Net"}}, {"a": torch.zeros(1)})


def put_gem():
    """A repository of MiewID's kind, its card, and its embedding computed step by step."""
    backbone = unlike_new(timm.create_model("test_efficientnet", num_classes=0, global_pool=""))
    norm = unlike_new(torch.nn.BatchNorm1d(backbone.num_features))
    tensors = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    tensors |= {f"bn.{name}": value for name, value in norm.state_dict().items()}
    tensors |= {"backbone.global_pool.p": torch.tensor([2.7]), "final.weight": torch.zeros(3, backbone.num_features)}
    put("lab/gem", {"model_type": "own", "auto_map": {"AutoModel": "own.Net"}}, tensors, "tags: []")
    card = {"name": "gem", "width": 96, "height": 96, "resize": "linear-antialias", "colours": "rgb", "layout": "nchw"}
    card |= {"scale": 255.0, **IMAGENET, "dimension": 1, "licence": "none published", "commercial": False}

    def embed(pixels):
        with torch.inference_mode():
            maps = backbone(pixels).clamp(min=1e-6)
            return norm(torch.nn.functional.avg_pool2d(maps**2.7, maps.shape[2:]).flatten(1) ** (1 / 2.7))

    return parse_ready_card({"card": card, "network": "timm-gem", "architecture": "test_efficientnet"}), embed


def fetched(source, picture, name, **options):
    """What a fetch wrote, or why it did not."""
    target = HERE / "fetched" / name
    try:
        done = fetch_encoder(source, target, picture, hub=HUB, **options)
    except UserError as error:
        return {"refused": str(error), "left": target.exists()}
    encoder = open_encoder(target)
    rows = encoder.embed(np.zeros((5, encoder.card.height, encoder.card.width, 3), np.uint8)).shape
    card = {"dimension": done.card.dimension, "size": done.card.width, "licence": done.card.licence}
    return {**card, "commercial": done.card.commercial, "resize": done.card.resize, "cosine": done.cosine, "rows": rows}


def noise_in_the_file(picture):
    """A fetch whose ONNX file is another network than the original."""
    right = hub_models.write_onnx

    def wrong(network, card, path):
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(1 + 0.3 * torch.randn_like(weight))
        right(network, card, path)

    hub_models.write_onnx = wrong
    try:
        return fetched("timm:test_efficientnet.r160_in1k", picture, "noise")
    finally:
        hub_models.write_onnx = right


def main():
    gem, embed = fill_hub()
    picture = draw_probe()
    cases = {
        "timm": fetched("timm:test_efficientnet.r160_in1k", picture, "timm"),
        "timm, of another size": fetched("timm:test_efficientnet.r160_in1k", picture, "timm96", size=96),
        "transformer": fetched("timm:test_vit.r160_in1k", picture, "vit"),
        "transformer, of another size": fetched("timm:test_vit.r160_in1k", picture, "vit96", size=96),
        "checkpoint": fetched("hf:lab/checkpoint", picture, "checkpoint"),
        "swin": fetched("hf:lab/swin", picture, "swin"),
        "dinov2": fetched("hf:lab/dinov2", picture, "dinov2"),
        "clip": fetched("hf:lab/clip", picture, "clip"),
        "gem": fetched("hf:lab/gem", picture, "gem", card=gem),
        "gem without a card": fetched("hf:lab/gem", picture, "own"),
        "code": fetched("hf:lab/code", picture, "code"),
        "harmful": fetched("hf:lab/harmful", picture, "harmful"),
        "lacking": fetched("hf:lab/lacking", picture, "lacking"),
        "no such architecture": fetched("timm:resnett", picture, "none"),
        "file": fetched(
            str(HUB / "lab/checkpoint/pytorch_model.bin"),
            picture,
            "file",
            card=parse_ready_card(
                {"card": {**_own_card(gem), "name": "file"}, "network": "timm", "architecture": "test_efficientnet"}
            ),
        ),
        "noise": noise_in_the_file(picture),
    }
    crops = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)
    mean, std = (np.array(IMAGENET[name], np.float32) for name in ("mean", "std"))
    pixels = torch.from_numpy(((crops / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2))
    expected = torch.nn.functional.normalize(embed(pixels)).numpy()
    found = open_encoder(HERE / "fetched" / "gem").embed(crops)
    cases["gem, step by step"] = float((found * expected).sum(1).min())
    cases["code ran"] = MARK.exists()
    pickle.loads(pickle.dumps(Harmful()))
    cases["code would run"] = MARK.exists()
    print(json.dumps(cases))


def _own_card(ready):
    names = (
        "width",
        "height",
        "resize",
        "colours",
        "layout",
        "scale",
        "mean",
        "std",
        "dimension",
        "licence",
        "commercial",
    )
    return {name: getattr(ready.card, name) for name in names}


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
