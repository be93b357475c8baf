"""Closed-form models whose schedules visit the same noise levels in every parameterisation, and Gaussians by prompt."""

from __future__ import annotations

import torch
from torch import nn

from unmemorize.core.model import Condition
from unmemorize.models.oracle import OracleModel

SHAPE = (3, 8, 8)


class Matched(OracleModel):
    """An oracle sampled by DDIM's rule at the log-SNR of Stable Diffusion's timesteps, whatever it predicts."""

    def at(self, t):
        """This model's own timestep with the log-SNR of a variance-preserving one."""
        alpha, sigma = OracleModel(self.denoiser).alpha_sigma(torch.as_tensor(t))
        return 1000 * (sigma / (alpha + sigma)).item() if self.kind == "flow" else t

    def size(self, t):
        """How large x is there, beside a variance-preserving one's."""
        alpha, sigma = OracleModel(self.denoiser).alpha_sigma(torch.as_tensor(t))
        return 1 / (alpha + sigma).item() if self.kind == "flow" else 1.0

    def factor(self, t):
        """Δε over Δ of its own output there."""
        alpha, sigma = OracleModel(self.denoiser).alpha_sigma(torch.as_tensor(t))
        known = {"epsilon": 1.0, "sample": alpha / sigma, "v_prediction": alpha, "flow": alpha / (alpha + sigma)}
        return float(known[self.kind])

    def schedule(self, steps):
        return Run(self, [981 - round(k * 980 / steps) for k in range(steps)])


class Run:
    """DDIM's rule, x' = α' x̂0 + σ' ε̂, in the model's own α and σ."""

    def __init__(self, model, levels):
        self.model, self.initial_scale = model, model.size(levels[0])
        self.timesteps = torch.tensor([model.at(t) for t in levels], dtype=torch.float64)

    def scale(self, x, t):
        return x

    def step(self, output, t, x, generators):
        said = self.model.interpret(output, x, t)
        later = self.timesteps[self.timesteps < t]
        if not len(later):
            return said.x0
        alpha, sigma = self.model.alpha_sigma(later[0])
        return alpha * said.x0 + sigma * said.eps


class Normal(nn.Module):
    """E[x0 | x] where x0 ~ N(mean, variance) as the embedding says: (n, 1, 2D)."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(SHAPE, dtype=torch.float64)  # which says what shape pictures have

    def forward(self, x, alpha, sigma, embeds):
        mean, variance = embeds[:, 0].reshape(len(x), 2, *SHAPE).unbind(1)
        gain = alpha * variance / (alpha.square() * variance + sigma.square())
        return mean + gain * (x - alpha * mean)


class Normals(Matched):
    """A Gaussian for the empty prompt and a narrower one for any other."""

    def __init__(self, kind="epsilon"):
        super().__init__(Normal(), kind=kind)

    def encode(self, prompts):
        generator = torch.Generator().manual_seed(2)
        means = torch.rand(2, *SHAPE, generator=generator, dtype=torch.float64) - 0.5
        variances = torch.stack([torch.full(SHAPE, 0.6), torch.full(SHAPE, 0.05)]).double()
        rows = torch.stack([torch.cat([means[i].flatten(), variances[i].flatten()]) for i in (0, 1)])
        return Condition(rows[[int(bool(p)) for p in prompts]][:, None], texts=tuple(prompts))

    def affine(self, t):
        """Δε at a timestep of a variance-preserving model, as a factor of x and a constant, each (c, h, w)."""
        alpha, sigma = (part.reshape(()) for part in OracleModel(self.denoiser).alpha_sigma(torch.tensor(t)))
        (m_u, v_u), (m_c, v_c) = self.encode(["", "any"]).embeds.reshape(2, 2, *SHAPE)
        gain_u, gain_c = (alpha * v / (alpha**2 * v + sigma**2) for v in (v_u, v_c))
        slope = -(alpha / sigma) * (gain_c - gain_u)
        return slope, -(alpha / sigma) * (m_c - m_u - alpha * (gain_c * m_c - gain_u * m_u))
