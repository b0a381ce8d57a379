"""One training step: forward, losses, backward, guard, update. Knows no files and no data."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from reid.config import Config
from reid.device import autocast, resolve_precision
from reid.errors import CheckFailed
from reid.losses import batch_hard_triplet, center_loss, identity_loss, objective
from reid.models.batch_norm import GhostBatchNorm, replace_forward, synchronise
from reid.processes import World, gather

CENTER_RATE = 0.5  # learning rate of the centers: PaddleClas' configuration


class TrainStep:
    """A model with its optimiser; each call is a step of the same training for any number of processes.

    model: returns (features (n, S, D), logits (n, L, K)) in training mode, and has its backbone as `base`.
    optimizer: sgd, nesterov and adam are fused, because those leave the weights alone where `found_inf` is 1, so that
    the host need not wait to see it.
    """

    def __init__(self, model: nn.Module, config: Config, device: torch.device, here: World = World()):  # noqa: B008
        self.config, self.device, self.here = config, device, here
        self.precision = resolve_precision(config.precision, device)
        if config.ghost_batch:
            replace_forward(model, GhostBatchNorm, ghost=config.ghost_batch)
        elif here.size > 1:
            model = synchronise(model, device)
        self.model = model.train()
        backbone = list(model.base.parameters())
        heads = [p for name, p in model.named_parameters() if not name.startswith("base.") and p.requires_grad]
        groups = [{"params": backbone}, {"params": heads}]
        common = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
        if config.optimizer == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, **common)
        else:
            nesterov = config.optimizer == "nesterov"
            self.optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=nesterov, **common)
        self.centers: Tensor | None = None  # (K, S, D) of the center loss, made at the first step
        if config.compile:
            model.base.compile()
        self.module = model
        if here.size > 1:
            devices = [device.index] if device.type == "cuda" else None
            self.module = DistributedDataParallel(model, devices, broadcast_buffers=False)
        self.parameters = backbone + heads
        self.bad = torch.zeros((), device=device)  # becomes 1 at the first gradient that is not finite, and stays
        self.bad_terms: dict[str, Tensor] = {}
        self.optimizer.found_inf, self.optimizer.grad_scale = self.bad, None

    def __call__(self, images: Tensor, labels: Tensor, rates: tuple[float, float]) -> dict[str, Tensor]:
        """Images (n, 3, H, W), labels (n,): this process's part of the global batch. rates: of backbone and heads.
        Returns loss and its terms; nothing waits for the device."""
        c = self.config
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        with autocast(self.precision, self.device):
            features, logits = self.module(images)
        # the hardest positives and negatives are those of the global batch
        everyone, everyones = gather(features), gather(labels)
        triplet = batch_hard_triplet(everyone, everyones, c.margin).sum()
        cross_entropy = identity_loss(logits, labels, c.smoothing).sum()
        weights = {"triplet_weight": c.triplet_weight, "ce_weight": c.ce_weight}
        # processes average their gradients: right for the cross entropy, a mean over images; each process has only
        # its own images' share of the other terms' gradients, so those are sums
        loss = objective(self.here.size * triplet, cross_entropy, **weights)
        terms = {"triplet": triplet.detach(), "cross_entropy": cross_entropy.detach()}
        terms["loss"] = objective(**terms, **weights)
        if c.center_weight:
            if self.centers is None:
                self.centers = everyone.new_zeros(logits.shape[2], *everyone.shape[1:])
            center = center_loss(everyone, everyones, self.centers)
            loss = loss + self.here.size * c.center_weight * center
            terms |= {"center": center.detach(), "loss": terms["loss"] + c.center_weight * center.detach()}
        self.optimizer.zero_grad()
        loss.backward()
        norm = get_total_norm([p.grad for p in self.parameters])
        shown = {**terms, "gradient": norm}
        self.bad_terms = {k: torch.where(self.bad > 0, self.bad_terms.get(k, v), v) for k, v in shown.items()}
        self.bad.copy_(torch.maximum(self.bad, (~norm.isfinite()).float()))
        self.optimizer.step()
        if self.centers is not None:
            self.move_centers(everyone.detach(), everyones)
        return terms

    def move_centers(self, features: Tensor, labels: Tensor) -> None:
        """The centers' own step of plain SGD, at rate 0.5, on the unweighted center loss."""
        pull = 2 * CENTER_RATE / len(labels) * (features - self.centers[labels])
        self.centers.index_add_(0, labels, torch.where(self.bad > 0, 0.0, pull))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides the model's state."""
        return {"optimizer": self.optimizer.state_dict(), "centers": self.centers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Momenta and centers of a checkpoint; momentum and decay stay this configuration's."""
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay
            if "momentum" in group:
                group["momentum"] = self.config.momentum
        self.centers = state["centers"]

    def check_finite(self, step: int) -> None:
        """Raises CheckFailed when a gradient up to `step` was not finite; no weight changed since."""
        if self.bad.item():
            shown = ", ".join(f"{k} {v.item():.6g}" for k, v in self.bad_terms.items())
            raise CheckFailed(
                f"the gradient is not finite at step {step} or shortly before: {shown}; the weights were left as they "
                "were and the last checkpoint is kept. Lower --lr, or add --warmup_steps"
            )
