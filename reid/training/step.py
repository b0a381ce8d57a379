"""One training step: forward pass, losses, backward pass, guard, update. Reads no files and no images."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from reid.config import Config
from reid.device import Hardware, autocast, resolve_precision
from reid.errors import CheckFailed, InputError
from reid.losses import (
    batch_hard_triplet,
    center_loss,
    circle_logits,
    identity_loss,
    imitation_loss,
    objective,
    similarity_loss,
)
from reid.models.batch_norm import GhostBatchNorm, replace_forward, synchronise
from reid.processes import World, gather
from reid.training.teacher import Teacher

CENTER_RATE = 0.5  # learning rate of the centers, as in the configuration of PaddleClas


def check_compiler(device: torch.device) -> None:
    """Raises InputError if torch.compile cannot be used."""
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as e:  # of several types of torch, with many lines
        reason = str(e).strip().partition("\n")[0]
        raise InputError(
            f"--compile: torch.compile does not work here ({type(e).__name__}: {reason}); install the compiler that it "
            "needs (on a CPU g++ or clang, on Windows MSVC), or remove --compile"
        ) from e


class TrainStep:
    """A model with its optimiser. Each call is a step of the same training for any number of processes.

    model: returns (features (n, S, D), logits (n, L, K)) in training mode; its backbone is `base`.
    precision: the resolved precision of the backbone.

    A gradient that is not finite leaves the weights unchanged from then on. Fused optimisers test this on the device
    (`found_inf`), so the host does not wait for it; with other optimisers the host tests it.
    """

    def __init__(self, model: nn.Module, config: Config, device: torch.device, here: World = World()):  # noqa: B008
        self.config, self.device, self.here = config, device, here
        self.precision = resolve_precision(config.precision, device)
        if config.ghost_batch:
            replace_forward(model, GhostBatchNorm, ghost=config.ghost_batch)
        elif here.size > 1:
            model = synchronise(model, device)
        self.model = model.train()
        self.parameters: list[nn.Parameter] = []
        self.fused = Hardware(device).fused
        self.optimizer = self.build_optimizer()
        self.teacher: Teacher | None = None
        self.centers: Tensor | None = None  # (K, S, D) of the center loss, created in the first step
        if config.compile:
            check_compiler(device)
            model.get_submodule("base").compile()
        self.module = model
        if here.size > 1:
            devices = None if device.index is None else [device.index]
            self.module = DistributedDataParallel(model, devices, broadcast_buffers=False)
        self.bad = torch.zeros((), device=device)  # 1 from the first gradient that is not finite
        self.bad_terms: dict[str, Tensor] = {}
        if self.fused:
            self.optimizer.found_inf, self.optimizer.grad_scale = self.bad, None  # type: ignore[attr-defined]

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the configuration, with the backbone as group 0 and the heads as group 1."""
        c, model = self.config, self.model
        backbone = list(model.get_submodule("base").parameters())
        heads = [p for name, p in model.named_parameters() if not name.startswith("base.") and p.requires_grad]
        self.parameters = backbone + heads
        groups = [{"params": backbone}, {"params": heads}]
        common: dict[str, Any] = {"lr": c.lr, "weight_decay": c.weight_decay, "fused": self.fused}
        if c.optimizer == "adam":
            return torch.optim.Adam(groups, **common)
        return torch.optim.SGD(groups, momentum=c.momentum, nesterov=c.optimizer == "nesterov", **common)

    def __call__(
        self, images: Tensor, labels: Tensor, rates: tuple[float, float], frozen: bool = False
    ) -> dict[str, Tensor]:
        """One step on this process's part of the global batch: images (n, 3, H, W), labels (n,).

        rates: learning rates of backbone and heads. frozen: the backbone runs in eval mode and does not change.
        Returns the loss and its terms.
        """
        self.model.get_submodule("base").train(not frozen)
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        with autocast(self.precision, self.device):
            features, logits = self.module(images)
        # the hardest positives and negatives are those of the global batch
        everyone, everyones = gather(features), gather(labels)
        loss, terms = self.losses(logits, labels, everyone, everyones)
        if self.teacher is not None:
            loss = loss + self.imitation(self.teacher, images, logits, everyone, terms)
        self.optimizer.zero_grad()
        loss.backward()
        if frozen:  # after the backward pass, in which all processes must take the same part
            for parameter in self.optimizer.param_groups[0]["params"]:
                parameter.grad = None
        self.guard(terms)
        if self.fused or not self.bad.item():
            self.optimizer.step()
        if self.centers is not None:
            self.move_centers(self.centers, everyone.detach(), everyones)
        return terms

    def losses(
        self, logits: Tensor, labels: Tensor, everyone: Tensor, everyones: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(the loss to differentiate, its terms without gradients).

        logits, labels: of this process. everyone, everyones: features and labels of the global batch.

        Processes average their gradients. This is right for the cross entropy, a mean over images. Each process has
        only the gradients of its own images in the other terms, which are therefore multiplied by the number of
        processes.
        """
        c, size = self.config, self.here.size
        weighted = partial(objective, triplet_weight=c.triplet_weight, ce_weight=c.ce_weight)
        triplet = batch_hard_triplet(everyone, everyones, c.margin, c.soft_margin).sum()
        if c.model == "sbs":
            logits = circle_logits(logits, labels)
        cross_entropy = identity_loss(logits, labels, c.smoothing).sum()
        loss = weighted(size * triplet, cross_entropy)
        terms = {"triplet": triplet.detach(), "cross_entropy": cross_entropy.detach()}
        terms["loss"] = weighted(triplet.detach(), cross_entropy.detach())
        if c.center_weight:
            if self.centers is None:
                self.centers = everyone.new_zeros(logits.shape[2], *everyone.shape[1:])
            center = center_loss(everyone, everyones, self.centers)
            loss = loss + size * c.center_weight * center
            terms |= {"center": center.detach(), "loss": terms["loss"] + c.center_weight * center.detach()}
        return loss, terms

    def imitation(
        self, teacher: Teacher, images: Tensor, logits: Tensor, everyone: Tensor, terms: dict[str, Tensor]
    ) -> Tensor:
        """The weighted losses against the teacher, which are added to `terms`. Arguments as in `losses`.

        The similarity counts once for each slot, as the triplet loss does.
        """
        weight, features, taught = self.config.teacher_weight, *teacher(images)
        similarity = everyone.shape[1] * similarity_loss(everyone, gather(features))
        terms["similarity"] = similarity.detach()
        loss, total = self.here.size * similarity, similarity.detach()
        if taught is not None:
            imitation = imitation_loss(logits[..., : taught.shape[2]], taught).sum()
            terms["imitation"] = imitation.detach()
            loss, total = loss + imitation, total + imitation.detach()
        terms["loss"] = terms["loss"] + weight * total
        return weight * loss

    def guard(self, terms: dict[str, Tensor]) -> None:
        """Sets `bad` if a gradient is not finite, and keeps the terms of the first such step."""
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        shown = {**terms, "gradient": norm}
        self.bad_terms = {k: torch.where(self.bad > 0, self.bad_terms.get(k, v), v) for k, v in shown.items()}
        self.bad.copy_(torch.maximum(self.bad, (~norm.isfinite()).float()))

    def move_centers(self, centers: Tensor, features: Tensor, labels: Tensor) -> None:
        """A step of plain SGD for the centers, at rate 0.5, on the unweighted center loss."""
        pull = 2 * CENTER_RATE / len(labels) * (features - centers[labels])
        centers.index_add_(0, labels, torch.where(self.bad > 0, 0.0, pull))

    def state_dict(self) -> dict[str, Any]:
        """The part of a checkpoint besides the state of the model."""
        return {"optimizer": self.optimizer.state_dict(), "centers": self.centers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes momenta and centers from a checkpoint; momentum and weight decay stay those of the configuration."""
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay
            group["fused"] = self.fused  # of this device
            if "momentum" in group:
                group["momentum"] = self.config.momentum
        self.centers = state["centers"]

    def check_finite(self, step: int) -> None:
        """Raises CheckFailed if a gradient up to `step` was not finite. No weight has changed since."""
        if self.bad.item():
            shown = ", ".join(f"{k} {v.item():.6g}" for k, v in self.bad_terms.items())
            raise CheckFailed(
                f"the gradient is not finite at step {step} or shortly before: {shown}; the weights were not changed "
                "and the last checkpoint is kept. Lower --lr, or add --warmup_steps"
            )
