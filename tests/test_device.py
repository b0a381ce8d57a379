"""The device layer with a fake accelerator: CUDA, MPS, XPU and CPU, none of which the tests need."""

from contextlib import nullcontext

import pytest
import torch

from reid import device as module
from reid.config import Config
from reid.data.loader import ImageStore
from reid.device import Hardware, autocast, find_hardware, process_count, resolve_precision, set_threads, set_up
from reid.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture()
def machine(monkeypatch):
    """machine("cuda", count=2, bf16=False): torch answers as on a machine with these accelerators."""

    def fake(kind: str | None, count: int = 1, bf16: bool = True) -> None:
        found = torch.device(kind) if kind else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count if kind else 0)
        monkeypatch.setattr(torch.accelerator, "set_device_index", selected.append)
        for backend in (torch.cuda, torch.xpu):
            monkeypatch.setattr(backend, "device", lambda _: nullcontext())
            monkeypatch.setattr(backend, "is_bf16_supported", lambda including_emulation=True: bf16)
            monkeypatch.setattr(backend, "get_device_name", lambda _: "Fake")
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: bf16)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512" if bf16 else "AVX2")

    selected: list[int] = []
    fake.selected = selected
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return fake


@pytest.fixture()
def settings():
    """Restores the process-wide settings that set_up changes."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    cudnn.deterministic, cudnn.allow_tf32 = before[:2]
    torch.set_float32_matmul_precision(before[2])


def in_process(monkeypatch, rank: int, size: int) -> None:
    """As torchrun starts process `rank` of `size`."""
    for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_auto_takes_the_first_accelerator(machine, kind, caplog):
    machine(kind)
    assert find_hardware().device == torch.device(kind, 0)
    assert find_hardware(kind, (0,)).device == torch.device(kind, 0)
    assert find_hardware("cpu").device == CPU
    assert not caplog.records


def test_unknown_accelerator_is_not_used(machine):
    machine("hpu")
    assert find_hardware().device == CPU


@pytest.mark.parametrize(
    "device, gpus, warn, lines",
    [("auto", (), True, 1), ("auto", (0,), False, 1), ("auto", (), False, 0), ("cpu", (), True, 0)],
)
def test_missing_accelerator_is_reported_where_it_matters(machine, caplog, device, gpus, warn, lines):
    machine(None)
    assert find_hardware(device, gpus, warn).device == CPU
    assert caplog.text.count("no CUDA, MPS or XPU device was found") == len(caplog.records) == lines


def test_only_rank_0_reports(machine, monkeypatch, caplog):
    machine(None)
    in_process(monkeypatch, 1, 2)
    assert find_hardware("auto", (0, 1)).device == CPU
    assert not caplog.records


@pytest.mark.parametrize(
    "kind, device, gpus, words",
    [
        (None, "cuda", (), "--device cuda: PyTorch finds no such device here; use --device cpu"),
        ("mps", "cuda", (), "use --device mps or cpu"),
        ("cuda", "xpu", (0,), "--device xpu"),
        ("cuda", "auto", (2,), "--gpus 2: this machine has cuda devices 0 to 1"),
        ("mps", "auto", (1,), "this machine has mps devices 0 to 0"),
        ("cuda", "auto", (1, 1), "--gpus 1 1 names a device twice"),
    ],
)
def test_devices_that_do_not_exist(machine, kind, device, gpus, words):
    machine(kind, count=1 if kind == "mps" else 2)
    with pytest.raises(InputError, match=words):
        find_hardware(device, gpus)


def test_cpu_with_gpu_ids_is_refused():
    with pytest.raises(InputError, match="--device cpu has no GPUs; remove --gpus 0 1"):
        Config(device="cpu", gpus=(0, 1))


def test_each_process_has_a_device_of_its_own(machine, monkeypatch):
    machine("cuda", count=4)
    for rank in range(2):
        in_process(monkeypatch, rank, 2)
        assert find_hardware().device == torch.device("cuda", rank)
        assert find_hardware("cuda", (3, 1)).device == torch.device("cuda", (3, 1)[rank])
    with pytest.raises(InputError, match="2 or more processes, but 1 devices; give --gpus one id per process"):
        find_hardware("auto", (3,))


@pytest.mark.distributed
@pytest.mark.slow
def test_number_of_processes(machine, monkeypatch):
    machine("xpu", count=4)
    assert [process_count("auto", gpus) for gpus in ((), (2,), (0, 1, 3))] == [1, 1, 3]
    assert process_count("cpu", ()) == 1
    in_process(monkeypatch, 0, 2)
    assert process_count("auto", (0, 1)) == 1  # torchrun has started them
    machine(None)
    monkeypatch.delenv("RANK")
    assert process_count("auto", (0, 1)) == 1


@pytest.mark.parametrize(
    "kind, bf16, resolved",
    [
        ("cuda", True, {"auto": "bf16", "fp32": "fp32", "tf32": "tf32", "bf16": "bf16"}),
        ("cuda", False, {"auto": "fp32", "fp32": "fp32", "tf32": "tf32", "bf16": "bf16"}),
        ("xpu", True, {"auto": "bf16", "fp32": "fp32", "tf32": "fp32", "bf16": "bf16"}),
        ("xpu", False, {"auto": "fp32", "fp32": "fp32", "tf32": "fp32", "bf16": "bf16"}),
        ("mps", True, {"auto": "fp32", "fp32": "fp32", "tf32": "fp32", "bf16": "bf16"}),
        ("mps", False, {"auto": "fp32", "fp32": "fp32", "tf32": "fp32"}),
        ("cpu", True, {"auto": "fp32", "fp32": "fp32", "tf32": "fp32", "bf16": "bf16"}),
        ("cpu", False, {"auto": "fp32", "fp32": "fp32", "tf32": "fp32", "bf16": "bf16"}),
    ],
)
def test_resolved_precision(machine, kind, bf16, resolved):
    machine(None if kind == "cpu" else kind, bf16=bf16)
    device = torch.device(kind)
    assert {asked: resolve_precision(asked, device) for asked in resolved} == resolved
    if "bf16" not in resolved:
        with pytest.raises(InputError, match="needs macOS 14"):
            resolve_precision("bf16", device)


@pytest.mark.parametrize(
    "kind, precision, bf16, words",
    [
        ("cuda", "bf16", False, "no bf16 instructions"),
        ("xpu", "bf16", False, "no bf16 instructions"),
        ("cpu", "bf16", False, "no bf16 instructions"),
        ("mps", "tf32", True, "tf32 exists only on CUDA"),
        ("cpu", "tf32", True, "tf32 exists only on CUDA"),
        ("cpu", "bf16", True, ""),
        ("cuda", "tf32", True, ""),
        ("cuda", "auto", False, ""),
    ],
)
def test_slow_or_missing_precision_is_reported_once(machine, settings, caplog, kind, precision, bf16, words):
    machine(None if kind == "cpu" else kind, bf16=bf16)
    set_up(Hardware(torch.device(kind)), precision)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(words) and words in "".join(warnings)


def test_set_up_changes_process_wide_settings(machine, settings, monkeypatch, caplog):
    """Device, cuDNN, float32 products and malloc are set here, and device and precision are logged once."""
    caplog.set_level("INFO", "reid")
    kept = []
    monkeypatch.setattr(module, "keep_memory", lambda: kept.append(1))
    machine("cuda", count=2)
    assert set_up(Hardware(torch.device("cuda", 1)), "tf32") == "tf32"
    assert machine.selected == [1] and not kept
    assert torch.backends.cudnn.deterministic and torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "high"
    assert set_up(Hardware(CPU)) == "fp32"
    assert kept == [1] and machine.selected == [1]
    assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    assert [r.getMessage() for r in caplog.records] == [
        "device cuda:1 (Fake), precision tf32",
        "device cpu, precision fp32",
    ]


def test_autocast_changes_no_global_setting(settings):
    before = torch.get_float32_matmul_precision()
    x = torch.ones(2, 2)
    with autocast("bf16", CPU):
        assert (x @ x).dtype == torch.bfloat16
    with autocast("tf32", CPU):
        assert (x @ x).dtype == torch.float32
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ValueError, match="not resolved"):
        autocast("auto", CPU)


@pytest.mark.parametrize(
    "kind, fused, pinned", [("cpu", True, False), ("cuda", True, True), ("mps", False, False), ("xpu", False, True)]
)
def test_capabilities(kind, fused, pinned):
    hardware = Hardware(torch.device(kind))
    assert (hardware.fused, hardware.pinned) == (fused, pinned)


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps", "xpu"])
def test_batches_are_pinned_only_where_it_helps(monkeypatch, kind):
    """MPS may read a non-blocking copy before it is complete, so copies wait there."""
    calls = []
    store = ImageStore([], 4, 2, cache="none")
    store.device = torch.device(kind)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: calls.append("pinned") or x)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, non_blocking: calls.append((device.type, non_blocking)))
    store.to_device(torch.zeros(1, 4, 2, 3, dtype=torch.uint8))
    beside = kind in ("cuda", "xpu")
    assert calls == ["pinned"] * beside + [(kind, beside)]


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_other_c_libraries_have_no_mallopt(monkeypatch, error):
    def refuse(_):
        raise error

    monkeypatch.setattr(module.ctypes, "CDLL", refuse)
    module.keep_memory()


@pytest.mark.parametrize("threads, busy, variable, warned", [
    (0, 95, None, True),
    (0, 40, None, False),
    (1, 95, None, False),
    (0, 95, "2", False),
])  # fmt: skip
def test_a_busy_machine_is_reported_if_nobody_chose_threads(monkeypatch, caplog, threads, busy, variable, warned):
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: float(busy))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    set_threads(threads, torch.device("cpu"))
    assert torch.get_num_threads() == (threads or before)
    torch.set_num_threads(before)
    assert ("other processes use 95 % of the CPU" in caplog.text) == warned
    assert ("--threads" in caplog.text) == warned
