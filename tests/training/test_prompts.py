"""Learned prompts: how they are put together, held to plain code, and their files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.seeded import CLIP_TINY, save_clip

from offnominal.backbones import load_backbone
from offnominal.backbones.clip import require_clip
from offnominal.backbones.clip_text import ClipText
from offnominal.detectors.language.anomalyclip import AnomalyCLIP
from offnominal.errors import ModelFileError, OptionError
from offnominal.language.learned import AnomalyCLIPPrompts, CoOpPrompts, LearnedPrompts
from offnominal.language.learnedfile import LearnedFile, read_learned, write_learned


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ClipText:
    path = save_clip(tmp_path_factory.mktemp("clip"), CLIP_TINY, "tiny", quick_gelu=True)
    return require_clip(load_backbone(None, path), "coop").load_text()


def plain_tower(text: ClipText, rows: torch.Tensor, end: int, deep: list[torch.Tensor]) -> Any:
    """The text tower written out: one prompt, all its positions, torch's own attention."""
    x = rows + text.positional_embedding
    mask = torch.full((len(x), len(x)), float("-inf")).triu(1)
    for index, block in enumerate(text.transformer.resblocks):
        if 1 <= index <= len(deep):
            x = torch.cat([x[:1], deep[index - 1], x[1 + len(deep[index - 1]) :]])
        normed = block.ln_1(x)[None]
        x = x + block.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0][0]
        hidden = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))
    return text.ln_final(x)[end] @ text.text_projection


def words(text: ClipText, sentence: str) -> list[torch.Tensor]:
    """Embeddings of a sentence's tokens, without start and end."""
    ids = text.tokenize([sentence])
    return list(text.embed_ids(ids)[0, 1 : int(text.ends(ids)[0])])


def padded(text: ClipText, middle: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Start, the tokens given, end, and zeros, with where the end is."""
    empty = text.embed_ids(text.tokenize([""]))[0]
    rows = [empty[0], *middle, empty[1]]
    rows += [empty[2]] * (text.context - len(rows))
    return torch.stack(rows), len(middle) + 1


def test_anomalyclip_prompts(text: ClipText) -> None:
    generator = torch.Generator().manual_seed(7)
    prompts = AnomalyCLIPPrompts(text.width, 5, 3, 2, generator=generator)
    for parameter in prompts.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    found = prompts(text, ["bolt", "nut"])
    assert found.shape == (2, 2, text.embed_dim)
    assert torch.equal(found[0], found[1]), "they know no object"
    deep = [each.half().float() for each in prompts.deep]
    for state, context, sentence in (
        (0, prompts.normal, "object."),
        (1, prompts.abnormal, "damaged object."),
    ):
        rows, end = padded(text, [*context, *words(text, sentence)])
        torch.testing.assert_close(
            found[0, state], plain_tower(text, rows, end, deep), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("specific", [False, True])
def test_coop_prompts(text: ClipText, position: Any, specific: bool) -> None:
    """Zhou et al., 2022, eq. 3 and 4: where the class name stands, and whose context it is."""
    generator = torch.Generator().manual_seed(9)
    prompts = CoOpPrompts(text.width, 5, position, specific, generator=generator)
    torch.nn.init.normal_(prompts.context, std=0.5, generator=generator)
    names = ["metal_nut", "leather"]
    found = prompts(text, names)
    assert found.shape == (2, 2, text.embed_dim)
    for number, name in enumerate(["metal nut", "leather"]):
        for state, adjective in enumerate(("normal", "anomalous")):
            context = list(prompts.context[state if specific else 0])
            called, stop = words(text, f"{adjective} {name}"), words(text, ".")
            middle = {
                "end": [*context, *called, *stop],
                "middle": [*context[:2], *called, *context[2:], *stop],
                "front": [*called, *context, *stop],
            }[position]
            rows, end = padded(text, middle)
            torch.testing.assert_close(
                found[number, state], plain_tower(text, rows, end, []), atol=1e-5, rtol=1e-5
            )


def test_coop_starts_from_words(text: ClipText) -> None:
    """With the embeddings of words as context, the prompt is that sentence."""
    prompts = CoOpPrompts(text.width, 4)
    prompts.start_from(text, "a photo of a")
    said = text.encode(["a photo of a normal bolt.", "a photo of a anomalous bolt."])
    torch.testing.assert_close(prompts(text, ["bolt"])[0], said, atol=1e-5, rtol=1e-5)
    with pytest.raises(OptionError, match="--length 2"):
        prompts.start_from(text, "a photo")
    with pytest.raises(OptionError, match="by chance"):
        AnomalyCLIPPrompts(text.width).start_from(text, "a photo")


def test_first_values_are_the_papers(text: ClipText) -> None:
    prompts = AnomalyCLIPPrompts(512, generator=torch.Generator().manual_seed(1))
    assert len(prompts.deep) == 8
    numbers = sum(parameter.numel() for parameter in prompts.parameters())
    assert numbers == 2 * 12 * 512 + 8 * 4 * 512
    values = torch.cat([parameter.flatten() for parameter in prompts.parameters()])
    assert values.std().item() == pytest.approx(0.02, rel=0.02)
    again = AnomalyCLIPPrompts(512, generator=torch.Generator().manual_seed(1))
    assert torch.equal(prompts.deep[7], again.deep[7])


@pytest.mark.parametrize(
    "build",
    [
        lambda: AnomalyCLIPPrompts(8, length=0),
        lambda: AnomalyCLIPPrompts(8, depth=0),
        lambda: CoOpPrompts(8, length=0),
        lambda: CoOpPrompts(8, position="back"),  # type: ignore[arg-type]  # the point
    ],
)
def test_settings_are_checked(build: Any) -> None:
    with pytest.raises(OptionError):
        build()


@pytest.mark.parametrize(
    "prompts",
    [AnomalyCLIPPrompts(16, 3, 2, 2), CoOpPrompts(16, 5, "middle", True)],
    ids=["anomalyclip", "coop"],
)
def test_files_come_back(prompts: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.safetensors"
    about = LearnedFile(
        prompts.method, prompts.settings(), {"layers": [3]}, {"name": "x", "digest": "d"}, {"a": 1}
    )
    write_learned(path, prompts, about)
    found, said = read_learned(path, LearnedPrompts)
    assert type(found) is type(prompts)
    assert said == about
    for (name, ours), (again, theirs) in zip(
        prompts.state_dict().items(), found.state_dict().items(), strict=True
    ):
        assert name == again
        assert torch.equal(ours, theirs)
    assert not any(parameter.requires_grad for parameter in found.parameters())
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["offnominal_learned"])
        assert sorted(file.keys()) == sorted(prompts.state_dict())
    assert header["format"] == 1
    first = path.read_bytes()
    write_learned(path, prompts, about)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no half-written file stays"


def released(width: int = 64, depth: int = 3) -> dict[str, torch.Tensor]:
    tensors = {name: torch.randn(1, 1, 12, width) for name in ("ctx_pos", "ctx_neg")}
    return tensors | {
        f"compound_prompts_text.{number}": torch.randn(4, width) for number in range(depth - 1)
    }


def test_released_checkpoints(text: ClipText, tmp_path: Path) -> None:
    """Both formats of torch.save, with the buffers and unused layers that the real ones have."""
    state = released() | {
        "token_prefix_pos": torch.zeros(1, 1, 1, 64),
        "tokenized_prompts_pos": torch.zeros(1, 77, dtype=torch.int64),
        "compound_prompt_projections.0.weight": torch.zeros(8, 64),
    }
    for zipped in (True, False):
        path = tmp_path / f"epoch_{zipped}.pth"
        torch.save({"prompt_learner": state}, path, _use_new_zipfile_serialization=zipped)
        prompts, about = read_learned(path, LearnedPrompts)
        assert isinstance(prompts, AnomalyCLIPPrompts)
        assert about.learner == {"width": 64, "length": 12, "depth": 3, "deep_length": 4}
        assert about.backbone == {}
        assert torch.equal(prompts.normal, state["ctx_pos"][0, 0])
        assert torch.equal(prompts.abnormal, state["ctx_neg"][0, 0])
        assert torch.equal(prompts.deep[1], state["compound_prompts_text.1"])


def test_a_checkpoint_of_another_model_is_told_by_its_words(tmp_path: Path) -> None:
    weights = save_clip(tmp_path, CLIP_TINY, "tiny")
    net = require_clip(load_backbone(None, weights), "anomalyclip")
    tower = net.load_text()
    ids = tower.tokenize(AnomalyCLIPPrompts(64).texts())
    suffix = tower.embed_ids(ids)[0, 13:].reshape(1, 1, 64, 64)
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save({"prompt_learner": released() | {"token_suffix_pos": suffix}}, good)
    torch.save({"prompt_learner": released() | {"token_suffix_pos": suffix + 0.1}}, bad)
    AnomalyCLIP(prompts=good, weights=str(weights)).fit([])
    with pytest.raises(ModelFileError, match=r"bad\.pth: the token embeddings"):
        AnomalyCLIP(prompts=bad, weights=str(weights)).fit([])


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code has run",))


def write_bad(path: Path, kind: str) -> None:
    if kind == "evil":
        torch.save({"prompt_learner": Evil()}, path)
    elif kind == "other":
        torch.save({"state_dict": {"a": torch.zeros(2)}}, path)
    elif kind == "no tensors":
        torch.save({"prompt_learner": {"ctx_pos": 1, "ctx_neg": 2}}, path)
    elif kind == "flat":
        torch.save({"prompt_learner": released() | {"ctx_neg": torch.zeros(3, 64)}}, path)
    elif kind == "text":
        path.write_text("prompts")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind in ("cut", "newer", "header", "method", "settings"):
        prompts = AnomalyCLIPPrompts(16, 3, 2, 2)
        learner = prompts.settings() | ({"length": 4} if kind == "settings" else {})
        method = "other" if kind == "method" else "anomalyclip"
        write_learned(path, prompts, LearnedFile(method, learner))
        content = path.read_bytes()
        if kind == "cut":
            path.write_bytes(content[:-20])
        elif kind == "newer":
            path.write_bytes(content.replace(b'\\"format\\": 1', b'\\"format\\": 9'))
        elif kind == "header":
            path.write_bytes(content.replace(b'\\"format\\"', b'\\"tamrof\\"'))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("absent", "does not exist"),
        ("evil", "without running code"),
        ("other", "neither AnomalyCLIP's checkpoint"),
        ("no tensors", "neither AnomalyCLIP's checkpoint"),
        ("flat", "do not fit"),
        ("text", "truncated, or no file"),
        ("empty", "truncated, or no file"),
        ("cut", "truncated, or no file"),
        ("newer", "upgrade"),
        ("header", "not as it was written"),
        ("method", "which this version lacks"),
        ("settings", "do not fit its settings"),
    ],
)
def test_bad_files(
    kind: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.pth"
    write_bad(path, kind)
    with pytest.raises(ModelFileError, match=told) as caught:
        read_learned(path, LearnedPrompts)
    assert str(path) in str(caught.value)
    assert "code has run" not in capsys.readouterr().out
