"""One training step: forward, losses, backward, guard, update. Knows no files and no data."""

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from reid.config import Config
from reid.losses import batch_hard_triplet, identity_loss, objective
from reid.models.batch_norm import GhostBatchNorm, replace_forward, synchronise
from reid.processes import World, gather
from reid.runs import autocast


class TrainStep:
    """A model with its optimiser; each call is a step of the same training for any number of processes.

    model: returns (features (n, S, D), logits (n, L, K)) in training mode, and has its backbone as `base`.
    """

    def __init__(self, model: nn.Module, config: Config, device: torch.device, here: World = World()):  # noqa: B008
        self.config, self.device, self.here = config, device, here
        if config.ghost_batch:
            replace_forward(model, GhostBatchNorm, ghost=config.ghost_batch)
        elif here.size > 1:
            model = synchronise(model, device)
        self.model = model.train()
        backbone = list(model.base.parameters())
        heads = [p for name, p in model.named_parameters() if not name.startswith("base.")]
        groups = [{"params": backbone, "base": config.base_lr}, {"params": heads, "base": config.lr}]
        self.optimizer = torch.optim.SGD(
            groups, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True
        )
        if config.compile:
            model.base.compile()
        self.module = model
        if here.size > 1:
            devices = [device.index] if device.type == "cuda" else None
            self.module = DistributedDataParallel(model, devices, broadcast_buffers=False)
        self.parameters = list(model.parameters())
        self.bad = torch.zeros((), device=device)  # becomes 1 at the first gradient that is not finite, and stays
        self.bad_terms: dict[str, Tensor] = {}
        # the fused update leaves the weights alone where found_inf is 1, so the host need not wait to see it
        self.optimizer.found_inf, self.optimizer.grad_scale = self.bad, None

    def __call__(self, images: Tensor, labels: Tensor, factor: float) -> dict[str, Tensor]:
        """Images (n, 3, H, W), labels (n,): this process's part of the global batch. factor: of both learning
        rates. Returns loss, triplet and cross_entropy; nothing waits for the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["base"]
        with autocast(self.config.precision, self.device):
            features, logits = self.module(images)
        # the hardest positives and negatives are those of the global batch
        triplet = batch_hard_triplet(gather(features), gather(labels), self.config.margin).sum()
        cross_entropy = identity_loss(logits, labels).sum()
        self.optimizer.zero_grad()
        # processes average their gradients: right for the cross entropy, a mean over images; each process has only
        # its own images' share of the triplet's gradient, so that is a sum
        objective(self.here.size * triplet, cross_entropy).backward()
        terms = {"triplet": triplet.detach(), "cross_entropy": cross_entropy.detach()}
        terms["loss"] = objective(**terms)
        norm = get_total_norm([p.grad for p in self.parameters])
        shown = {**terms, "gradient": norm}
        self.bad_terms = {k: torch.where(self.bad > 0, self.bad_terms.get(k, v), v) for k, v in shown.items()}
        self.bad.copy_(torch.maximum(self.bad, (~norm.isfinite()).float()))
        self.optimizer.step()
        return terms

    def load_optimizer(self, state: dict) -> None:
        """Momenta of a checkpoint; the rates stay this configuration's."""
        base = [group["base"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, rate in zip(self.optimizer.param_groups, base):
            group["base"] = rate
            group["momentum"], group["weight_decay"] = self.config.momentum, self.config.weight_decay

    def check_finite(self, step: int) -> None:
        """Raises FloatingPointError when a gradient up to `step` was not finite; no weight changed since."""
        if self.bad.item():
            shown = ", ".join(f"{k} {v.item():.6g}" for k, v in self.bad_terms.items())
            raise FloatingPointError(
                f"the gradient is not finite at step {step} or shortly before: {shown}; the weights were left as they "
                "were and the last checkpoint is kept. Lower --lr, or add --warmup_steps"
            )
