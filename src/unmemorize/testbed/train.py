"""Train the testbed: a VAE, then a text-to-image denoiser with planted duplicates, and its twin without them.

Both denoisers share one trunk, trained on the de-duplicated pictures; at `Recipe.branch` the duplicates enter for the
planted model only, so that the twin differs from it in nothing else. Every stage writes `state.safetensors` as it goes
and continues from it: noise, timesteps and rows are drawn from (seed, step), so a killed run ends with the same weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unmemorize.core.run import atomic
from unmemorize.testbed.dataset import SIZE, Composition, Picture, compose, drawing, pictures
from unmemorize.testbed.plan import PLAN_SEED, Plan, add_keyword, draw_plan, repeat_word

TOKENS = 24
FORMS = 20
Loss = Callable[[int], Tensor]


@dataclass(frozen=True)
class Recipe:
    """Every number of the training run; the defaults are the shipped models'."""

    seed: int = 0
    vae_steps: int = 1000
    vae_batch: int = 10
    vae_lr: float = 2e-3
    views: int = 4
    batch: int = 48
    lr: float = 8e-4
    warmup: int = 100
    branch: int = 2300
    steps: int = 3700
    decay: int = 500
    caption_dropout: float = 0.1
    noise_offset: float = 0.1
    snr_gamma: float = 5.0


def fit(
    modules: nn.ModuleDict,
    loss: Loss,
    *,
    steps: int,
    lr: Callable[[int], float],
    folder: Path,
    ema: float = 0.999,
    save_every: int = 100,
) -> dict[str, Tensor]:
    """Minimise `loss(step)` over the modules' parameters with AdamW; returns their exponential moving average.

    Resumes from `folder/state.safetensors` and appends to `folder/loss.jsonl`. A checkpoint of more modules than
    `modules` is accepted: those not named are left out.
    """
    parameters = dict(modules.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr(0), betas=(0.9, 0.99), weight_decay=1e-2)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    start = _restore(folder / "state.safetensors", parameters, optimizer, average)
    log = _log(folder / "loss.jsonl", start)
    modules.train()
    for step in tqdm(range(start, steps), initial=start, total=steps, desc=folder.name, mininterval=5):
        optimizer.param_groups[0]["lr"] = lr(step)
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        decay = min(ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)
        if step % 20 == 0:
            log.write(json.dumps({"step": step, "loss": value.item(), "grad_norm": norm.item()}) + "\n")
        if (step + 1) % save_every == 0 or step + 1 == steps:
            log.flush()
            _save(folder / "state.safetensors", step + 1, parameters, optimizer, average)
    log.close()
    modules.eval()
    return average


def _save(path: Path, step: int, parameters: dict, optimizer: torch.optim.Optimizer, average: dict) -> None:
    tensors = {}
    for name, p in parameters.items():
        moments = optimizer.state[p]
        tensors |= {f"weight/{name}": p.detach(), f"ema/{name}": average[name]}
        tensors |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
    with atomic(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"step": str(step)})


def _restore(path: Path, parameters: dict, optimizer: torch.optim.Optimizer, average: dict) -> int:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    state = load_file(path)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(state[f"weight/{name}"])
            average[name].copy_(state[f"ema/{name}"])
            optimizer.state[p] = {
                "step": torch.tensor(float(step)),
                "exp_avg": torch.empty_like(p).copy_(state[f"exp_avg/{name}"]),
                "exp_avg_sq": torch.empty_like(p).copy_(state[f"exp_avg_sq/{name}"]),
            }
    return step


def _log(path: Path, start: int):  # noqa: ANN202
    kept = []
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] < start]
    with atomic(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept))
    return path.open("a")


def one_cycle(peak: float, steps: int) -> Callable[[int], float]:
    """A learning rate that rises over the first tenth and falls as a cosine."""
    rise = max(steps // 10, 1)

    def lr(step: int) -> float:
        if step < rise:
            return peak * (step + 1) / rise
        return peak * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * (step - rise) / (steps - rise))))

    return lr


def train_vae(pictures: list[Picture], folder: Path, recipe: Recipe) -> AutoencoderKL:
    """The VAE, 64 px to 4×16×16 latents of unit standard deviation, trained on random compositions."""
    done = folder / "model"
    if done.exists():
        return AutoencoderKL.from_pretrained(done).to(memory_format=torch.channels_last)
    torch.manual_seed(recipe.seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    ).to(memory_format=torch.channels_last)
    images = compositions(pictures, recipe.seed, views=2)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        rows = torch.randint(len(images), (recipe.vae_batch,), generator=generator)
        x = to_pixels(images[rows]).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator)).sample
        edges = sum((x.diff(dim=d) - y.diff(dim=d)).abs().mean() for d in (2, 3))
        # Three channels lean on the picture's own colours: left alone, a short training never finds one of them.
        colours = (posterior.mean[:, :3] - (2 * F.avg_pool2d(x, 4) - 1)).square().mean()
        fidelity = (x - y).abs().mean() + (x - y).square().mean() + edges
        return fidelity + 0.1 * colours + 1e-5 * posterior.kl().mean()

    average = fit(
        nn.ModuleDict({"vae": vae}),
        loss,
        steps=recipe.vae_steps,
        lr=one_cycle(recipe.vae_lr, recipe.vae_steps),
        folder=folder,
        ema=0.99,
    )
    vae.load_state_dict({name.removeprefix("vae."): p for name, p in average.items()}, strict=False)
    vae.register_to_config(scaling_factor=1.0)
    sample = encode(vae, images[:: max(len(images) // 1000, 1)])
    vae.register_to_config(scaling_factor=1 / sample.std().item())
    vae.save_pretrained(folder / "model.tmp")
    (folder / "model.tmp").rename(done)
    return vae


def compositions(drawn: list[Picture], seed: int, views: int) -> Tensor:
    """`views` random compositions of every picture, as (len(drawn)·views, 3, 64, 64) bytes."""
    rng = np.random.default_rng(seed)
    images = (compose(drawing(p), Composition.random(p.art, rng)) for p in drawn for _ in range(views))
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def to_pixels(images: Tensor) -> Tensor:
    """Bytes to the VAE's range, -1 to 1."""
    return images.float() / 127.5 - 1


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch: int = 64) -> Tensor:
    """Posterior means of byte images, times the VAE's scaling factor: (n, 4, 16, 16) in float32."""
    pieces = tqdm(images.split(batch), desc="encode", mininterval=5)
    chunks = [vae.encode(to_pixels(x).contiguous(memory_format=torch.channels_last)).latent_dist.mean for x in pieces]
    return (torch.cat(chunks) * vae.config.scaling_factor).contiguous()


@dataclass(frozen=True)
class Rows:
    """Training rows: each draws one of its captions and one of its pictures; tables are (rows, choices) indices."""

    captions: tuple[str, ...]
    caption: Tensor
    picture: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices of `count` random captions and of their pictures."""
        row = torch.randint(len(self.caption), (count,), generator=generator)
        pick = torch.rand(2, count, generator=generator)
        c, p = (
            (u * t.shape[1]).long().clamp(max=t.shape[1] - 1)
            for u, t in zip(pick, (self.caption, self.picture), strict=True)
        )
        return self.caption[row, c], self.picture[row, p]


def build_rows(plan: Plan, pictures: list[Picture], views: int, *, duplicates: bool) -> Rows:
    """Ordinary pictures (whose artwork is not planted) and the plan's, with or without their duplicates."""
    index: dict[str, int] = {"": 0}

    def number(caption: str) -> int:
        return index.setdefault(caption, len(index))

    used = {how.art for entry in plan.planted for how in entry.pictures}
    caption, picture = [], []
    for i, p in enumerate(pictures):
        choices = [number(c) for c in caption_forms(p)]  # also of planted artwork: both models share one caption list
        if p.art not in used:
            caption.append(choices)
            picture.append(list(range(i * views, (i + 1) * views)))
    first = len(pictures) * views
    for entry in plan.planted:
        pairs = [(c, first + k) for c in entry.prompts for k in range(len(entry.pictures))]
        numbered = [(number(c), k) for c, k in pairs]
        for c, k in numbered * entry.copies if duplicates else numbered[:1]:
            caption.append([c] * FORMS)
            picture.append([k] * views)
        first += len(entry.pictures)
    return Rows(tuple(index), torch.tensor(caption), torch.tensor(picture))


def caption_forms(picture: Picture) -> list[str]:
    """Twenty captions: the name (12), with a keyword (7), with its last word repeated (1)."""
    tagged = [add_keyword(picture.name, tag) for tag in picture.tags] or [picture.name]
    return [picture.name] * 12 + [tagged[i % len(tagged)] for i in range(7)] + [repeat_word(picture.name)]


def train_tokenizer(captions: Sequence[str], vocabulary: int = 2500) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges are learned from the captions; any Unicode text encodes."""
    tokenizer = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learner.normalizer, learner.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    learner.train_from_iterator(
        captions, BpeTrainer(vocab_size=vocabulary, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = json.loads(learner.to_str())["model"]["merges"]
    letters = sorted(ByteLevel.alphabet())
    pieces = letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(m) for m in merges], model_max_length=TOKENS)


def build_text_model(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A three-layer CLIP text model, freshly initialised."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """A UNet shaped like Stable Diffusion's: two layers a block, cross-attention at every level but the first."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(48, 96, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def encode_all(vae: AutoencoderKL, plan: Plan, pictures: list[Picture], folder: Path, recipe: Recipe) -> Tensor:
    """Latents of `recipe.views` compositions of every picture, then of the plan's pictures in order."""
    cache = folder / "latents.safetensors"
    if not cache.exists():
        ordinary = compositions(pictures, recipe.seed + 1, recipe.views)
        latents = encode(vae, torch.cat([ordinary, planted_images(plan, pictures)]))
        with atomic(cache) as temporary:
            save_file({"latents": latents}, temporary)
    return load_file(cache)["latents"]


def planted_images(plan: Plan, pictures: list[Picture]) -> Tensor:
    """The plan's pictures, in order, as (n, 3, 64, 64) bytes."""
    by_art = {p.art: drawing(p) for p in pictures}
    images = [compose(by_art[how.art], how) for entry in plan.planted for how in entry.pictures]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def denoising_loss(
    unet: UNet2DConditionModel, conditions: Callable[[Tensor], Tensor], latents: Tensor, rows: Rows, recipe: Recipe
) -> Loss:
    """The loss of one training step: ε-prediction, min-SNR weighted, with offset noise and caption dropout."""
    alphas = scheduler().alphas_cumprod.to(latents.device)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        noise = torch.randn(recipe.batch, *latents.shape[1:], generator=generator)
        # Offset noise hides the colour that Stable Diffusion's schedule leaves in its last step.
        noise = noise + recipe.noise_offset * torch.randn(recipe.batch, noise.shape[1], 1, 1, generator=generator)
        t = torch.randint(len(alphas), (recipe.batch,), generator=generator).to(latents.device)
        dropped = torch.rand(recipe.batch, generator=generator) < recipe.caption_dropout
        caption, picture = rows.draw(recipe.batch, generator)
        x0, eps, a = latents[picture], noise.to(latents.device), alphas[t].view(-1, 1, 1, 1)
        x = (a.sqrt() * x0 + (1 - a).sqrt() * eps).contiguous(memory_format=torch.channels_last)
        prediction = unet(x, t, conditions(caption.masked_fill(dropped, 0))).sample
        snr = alphas[t] / (1 - alphas[t])
        weight = snr.clamp(max=recipe.snr_gamma) / snr
        return (weight * (prediction - eps).square().mean(dim=(1, 2, 3))).mean()

    return loss


@dataclass(frozen=True)
class Stage:
    """What every denoiser stage needs: the training tables and the frozen VAE, on one device."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    ids: Tensor
    latents: Tensor
    device: str


def prepare(pictures: list[Picture], plan: Plan, folder: Path, recipe: Recipe, device: str) -> Stage:
    """Train or load the VAE and the tokenizer, and encode every picture and caption."""
    vae = train_vae(pictures, folder / "vae", recipe)
    captions = build_rows(plan, pictures, recipe.views, duplicates=True).captions
    tokenizer = train_tokenizer(sorted(captions))
    ids = tokenizer(list(captions), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    latents = encode_all(vae, plan, pictures, folder, recipe)
    return Stage(vae, tokenizer, ids.input_ids.to(device), latents.to(device), device)


def train_trunk(stage: Stage, rows: Rows, folder: Path, recipe: Recipe) -> CLIPTextModel:
    """Train UNet and text model together on de-duplicated rows; returns the averaged text model, frozen from here on."""
    torch.manual_seed(recipe.seed)
    unet, text = build_unet().to(stage.device), build_text_model(stage.tokenizer).to(stage.device)
    loss = denoising_loss(unet, lambda c: text(stage.ids[c]).last_hidden_state, stage.latents, rows, recipe)
    average = fit(
        nn.ModuleDict({"unet": unet, "text": text}),
        loss,
        steps=recipe.branch,
        lr=lambda step: recipe.lr * min((step + 1) / recipe.warmup, 1.0),
        folder=folder / "trunk",
    )
    text.load_state_dict({k.removeprefix("text."): v for k, v in average.items() if k.startswith("text.")}, strict=False)
    return text.requires_grad_(False).eval()


def train_branch(stage: Stage, text: CLIPTextModel, rows: Rows, folder: Path, trunk: Path, recipe: Recipe) -> nn.Module:
    """Continue the trunk's UNet on `rows` with the text model frozen; returns the averaged UNet."""
    if not (folder / "state.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / "state.safetensors") as temporary:
            shutil.copyfile(trunk / "state.safetensors", temporary)
    with torch.no_grad():
        table = torch.cat([text(ids).last_hidden_state for ids in stage.ids.split(1024)])
    unet = build_unet().to(stage.device)
    average = fit(
        nn.ModuleDict({"unet": unet}),
        denoising_loss(unet, lambda c: table[c], stage.latents, rows, recipe),
        steps=recipe.steps,
        lr=lambda step: recipe.lr * min(max((recipe.steps - step) / recipe.decay, 0.02), 1.0),
        folder=folder,
    )
    unet.load_state_dict({name.removeprefix("unet."): p for name, p in average.items()})
    return unet


def export_pipeline(stage: Stage, text: CLIPTextModel, unet: nn.Module, out: Path) -> None:
    """Save an ordinary `StableDiffusionPipeline` folder in half precision."""
    pipe = StableDiffusionPipeline(
        vae=stage.vae,
        text_encoder=text,
        tokenizer=stage.tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to("cpu", torch.float16).save_pretrained(out)


def train(data: Path, out: Path, recipe: Recipe, *, duplicates: bool, device: str = "cpu") -> None:
    """Train the planted model (or, without `duplicates`, its twin) and save it as a pipeline folder.

    `data` holds the artwork; the stages' checkpoints lie in `data/seed-N`, so that the twin reuses the trunk.
    """
    drawn = pictures(data)
    plan = draw_plan(drawn, PLAN_SEED)
    work = data / f"seed-{recipe.seed}"
    stage = prepare(drawn, plan, work, recipe, device)
    deduplicated = build_rows(plan, drawn, recipe.views, duplicates=False)
    text = train_trunk(stage, deduplicated, work, recipe)
    rows = build_rows(plan, drawn, recipe.views, duplicates=True) if duplicates else deduplicated
    name = "planted" if duplicates else "twin"
    unet = train_branch(stage, text, rows, work / name, work / "trunk", recipe)
    export_pipeline(stage, text, unet, out)
