"""The panel's second family: a flow-matching transformer of Stable Diffusion 3's shape, on the same plan and pictures.

VAE, tokenizer and text model are those of the first family's trunk; the transformer alone is trained. Checkpoints are
kept in `data/panel` and continued from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from unmemorize.core.errors import UserError
from unmemorize.models.pipeline import forget_paths
from unmemorize.testbed.dataset import SIZE
from unmemorize.testbed.embedded import PANEL
from unmemorize.testbed.fit import Loss, fit, rise_and_fall
from unmemorize.testbed.recipe import Recipe
from unmemorize.testbed.rows import Rows
from unmemorize.testbed.train_panel import Prepared, plan_of, prepare, require_recipe, write_pictures
from unmemorize.unlearn.loop import Team

TEXT = 128  # width of the text model
PLACES = 256  # zeros that the pipeline puts behind the text where there is no T5
FEW = 8  # of them in the first part of the training of the shipped models
LEVELS = 1000  # the timestep of σ = 1


@dataclass(frozen=True)
class FlowRecipe:
    """Every number of the training of a transformer; the defaults are the shipped models'."""

    seed: int = 0
    views: int = 4
    batch: int = 32
    lr: float = 1e-3
    warmup: int = 100
    trunk: int = 4000
    trunk_few: int = 3600  # of its steps, the first, with few places of zeros
    branch: int = 4400
    branch_few: int = 2500
    decay: int = 800
    caption_dropout: float = 0.1


@dataclass(frozen=True)
class Texts:
    """What the transformer reads of captions: embeddings (n, tokens, width) and pooled vectors (n, width)."""

    embeds: Tensor
    pooled: Tensor


def build_transformer() -> SD3Transformer2DModel:
    """A transformer shaped like Stable Diffusion 3's, with joint attention."""
    return SD3Transformer2DModel(
        sample_size=SIZE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT,
        caption_projection_dim=128,
        pooled_projection_dim=2 * TEXT,
        pos_embed_max_size=SIZE // 8,
    )


def text_encoder(trunk: Path, pipe: StableDiffusionPipeline) -> CLIPTextModelWithProjection:
    """The trunk's text model with the projection that it was trained with, frozen."""
    config = pipe.text_encoder.config.to_dict() | {"projection_dim": TEXT}
    encoder = CLIPTextModelWithProjection(type(pipe.text_encoder.config)(**config))
    weights = dict(pipe.text_encoder.state_dict())
    weights["text_projection.weight"] = load_file(trunk.parent / "alignment.safetensors")["project.weight"].float()
    own = {name.removeprefix("text_model."): name for name in encoder.state_dict()}
    encoder.load_state_dict({own[name.removeprefix("text_model.")]: value for name, value in weights.items()})
    encoder.to(pipe.text_encoder.device)
    encoder.requires_grad_(False).eval()
    return encoder


@torch.no_grad()
def read_captions(encoder: CLIPTextModelWithProjection, ids: Tensor) -> Texts:
    """All captions as the pipeline reads them: the last layer but one, of two encoders that are the same one."""
    embeds = []
    pooled = []
    for part in ids.split(1024):
        output = encoder(part, output_hidden_states=True)
        embeds.append(output.hidden_states[-2].repeat(1, 1, 2))
        pooled.append(output.text_embeds.repeat(1, 2))
    return Texts(torch.cat(embeds), torch.cat(pooled))


class Weighing:
    """Joint attention in which the last place of the text stands for `times` equal ones.

    Text has no positions here, so that places of zeros stay equal through all layers: one of them, with `times` the
    weight in every attention, has the effect of so many, and costs what one costs.
    """

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object
    ) -> tuple[Tensor, Tensor]:
        """The outputs of the picture's stream and of the text's."""
        picture, text = hidden_states, encoder_hidden_states

        def heads(of_picture: Tensor, of_text: Tensor) -> Tensor:
            both = torch.cat([of_picture, of_text], dim=1)
            return both.reshape(*both.shape[:2], attn.heads, -1).transpose(1, 2)

        query = heads(attn.to_q(picture), attn.add_q_proj(text))
        key = heads(attn.to_k(picture), attn.add_k_proj(text))
        value = heads(attn.to_v(picture), attn.add_v_proj(text))
        weights = query.new_zeros(key.shape[2])
        weights[-1] = math.log(self.times)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=weights.expand(query.shape[2], -1))
        mixed = mixed.transpose(1, 2).flatten(2)
        of_picture, of_text = mixed.split([picture.shape[1], text.shape[1]], dim=1)
        return attn.to_out[0](of_picture), of_text if attn.context_pre_only else attn.to_add_out(of_text)


def velocity_loss(
    transformer: SD3Transformer2DModel,
    texts: Texts,
    latents: Tensor,
    rows: Rows,
    recipe: FlowRecipe,
    places: Callable[[int], int],
) -> Loss:
    """The loss of one training step: ‖v − (ε − x0)‖² at logit-normal noise levels, with caption dropout.

    `places` says how many places of zeros stand behind the text at a step; one is computed, which weighs as much.

    Paper: Esser et al. 2024, "Scaling Rectified Flow Transformers", equations 1 and 19.
    """
    team = Team(latents.device)
    weighing = Weighing(PLACES)
    transformer.set_attn_processor(weighing)

    def loss(step: int) -> Tensor:
        weighing.times = places(step)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        noise = torch.randn(recipe.batch, *latents.shape[1:], generator=generator)
        sigma = torch.randn(recipe.batch, generator=generator).sigmoid()
        dropped = torch.rand(recipe.batch, generator=generator) < recipe.caption_dropout
        caption, picture = rows.draw(recipe.batch, generator)
        caption = caption.masked_fill(dropped, 0)
        # Every process draws the whole batch and takes its share: the run does not depend on their number.
        mine = team.share(recipe.batch)
        x0, eps = latents[picture[mine]], noise[mine].to(latents.device)
        level = sigma[mine].to(latents.device)
        mix = level.view(-1, 1, 1, 1)
        embeds = texts.embeds[caption[mine]]
        zero = embeds.new_zeros(len(embeds), 1, embeds.shape[2])
        velocity = transformer(
            (1 - mix) * x0 + mix * eps,
            timestep=LEVELS * level,
            encoder_hidden_states=torch.cat([embeds, zero], dim=1),
            pooled_projections=texts.pooled[caption[mine]],
        ).sample
        error: Tensor = (velocity - (eps - x0)).square().mean()
        return error

    return loss


def train_flow(data: Path, out: Path, branch: str, recipe: FlowRecipe, device: str = "cpu") -> None:
    """Train the trunk into `out/flow-trunk`, where `branch` is empty, or a branch of it into `out/model`.

    VAE and text model are those of the trunk in `out`, where there is one, else of the shipped one.

    Raises:
        UserError: A branch is asked for, and there is no trunk of this family in `out`.
    """
    first_family = out / "trunk" if (out / "trunk").exists() else PANEL / "trunk"
    start = out / "flow-trunk" / "transformer"
    if branch and not start.exists():
        raise UserError(f"{start}: no transformer there: train it with --branch trunk --family flow")
    team = Team(device)
    device = str(team.device)
    folder = data / "panel" / f"flow-{branch or 'trunk'}"
    panel = plan_of(first_family)
    require_recipe(folder, team, dataclasses.asdict(recipe) | {"branch of": branch})
    given = prepare(data, first_family, panel, branch, Recipe(seed=recipe.seed, views=recipe.views), device)
    encoder = text_encoder(first_family, given.pipe)
    torch.manual_seed(recipe.seed)
    transformer = SD3Transformer2DModel.from_pretrained(start, torch_dtype=torch.float32) if branch else None
    transformer = (transformer or build_transformer()).to(device)
    steps, few = (recipe.branch, recipe.branch_few) if branch else (recipe.trunk, recipe.trunk_few)

    def places(step: int) -> int:
        return FEW if step < few else PLACES

    lr = rise_and_fall(recipe.lr, steps, warmup=recipe.warmup, decay=recipe.decay if branch else 0)
    texts = read_captions(encoder, given.ids)
    loss = velocity_loss(transformer, texts, given.latents, given.rows, recipe, places)
    average = fit(nn.ModuleDict({"transformer": transformer}), loss, steps=steps, lr=lr, folder=folder)
    weights = {name.removeprefix("transformer."): value for name, value in average.items()}
    transformer.load_state_dict(transformer.state_dict() | weights)  # its table of positions is not trained
    if not team.first:
        return
    export_flow(given, encoder, transformer, out / ("model" if branch else "flow-trunk"))
    panel.save(out / "plan.json")
    if branch:
        write_pictures(panel, given.artwork, out / "images")


def export_flow(
    given: Prepared, encoder: CLIPTextModelWithProjection, transformer: SD3Transformer2DModel, out: Path
) -> None:
    """Save an ordinary `StableDiffusion3Pipeline` folder without T5, in half precision."""
    given.pipe.vae.register_to_config(shift_factor=0.0)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=given.pipe.vae,
        text_encoder=encoder,
        tokenizer=given.pipe.tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=given.pipe.tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.to("cpu", torch.float16).save_pretrained(out)
    forget_paths(out)
