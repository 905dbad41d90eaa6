"""Forked kernels behave as kernels do, die as processes do, and leave nothing behind."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import LocalProvisioner

from lossbook.book.prewarm import ADDRESS, ForkedProcess, ForkProvisioner, Zygote

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only"),
    pytest.mark.slow,  # real kernels
]

Start = Callable[..., "Kernel"]


class Kernel:
    def __init__(self, **environment: str) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.provisioner = ForkProvisioner(
            kernel_id="test", kernel_spec=self.manager.kernel_spec, parent=self.manager
        )
        self.manager.start_kernel(env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
        self.process: Any = self.manager.provisioner.process
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(60)

    def outputs(self, code: str) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        reply = self.client.execute_interactive(textwrap.dedent(code), timeout=60, output_hook=messages.append)
        assert reply["content"]["status"] == "ok", reply["content"]
        return [message["content"] for message in messages if message["msg_type"] in ("stream", "display_data")]

    def text(self, code: str) -> str:
        return "".join(output["text"] for output in self.outputs(code)).strip()

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def start(zygote: Zygote) -> Iterator[Start]:
    kernels: list[Kernel] = []

    def start(**environment: str) -> Kernel:
        kernels.append(Kernel(**environment))
        return kernels[-1]

    yield start
    for kernel in kernels:
        kernel.stop()


def test_the_zygote_has_one_thread(zygote: Zygote) -> None:
    assert zygote.pid is not None
    assert psutil.Process(zygote.pid).num_threads() == 1


def test_the_socket_is_private(zygote: Zygote) -> None:
    assert zygote.folder is not None
    assert zygote.folder.stat().st_mode & 0o777 == 0o700


def test_a_kernel_is_forked_with_the_libraries_in_it(start: Start, zygote: Zygote) -> None:
    kernel = start()
    assert isinstance(kernel.process, ForkedProcess)
    assert psutil.Process(kernel.process.pid).ppid() == zygote.pid
    loaded = kernel.text(
        "import sys; print({'torch._dynamo', 'seaborn', 'lossbook.losses.surrogate'} <= set(sys.modules))"
    )
    assert loaded == "True"


def test_it_trains_on_the_threads_it_was_given(start: Start) -> None:
    code = """
    import torch, threadpoolctl
    model = torch.nn.Linear(50, 50)
    optimizer = torch.optim.Adam(model.parameters())
    for batch in torch.utils.data.DataLoader(torch.randn(4000, 50), batch_size=2000, num_workers=1):
        model(batch).square().mean().backward()
        optimizer.step()
    (torch.randn(1000, 1000) @ torch.randn(1000, 1000)).sum()
    pools = threadpoolctl.threadpool_info()
    used = ({pool["num_threads"] for pool in pools if pool["user_api"] == api} for api in ("openmp", "blas"))
    print(torch.get_num_threads(), *used)
    """
    assert start(OMP_NUM_THREADS="1").text(code) == "1 {1} {1}"
    assert start(OMP_NUM_THREADS="2").text(code) == "2 {2} {1}"  # NumPy's own threads spin while they wait


def test_environment_and_standard_streams_are_the_request_s(start: Start) -> None:
    kernel = start(SOME_VARIABLE="some value")
    assert kernel.text("import os; print(os.environ['SOME_VARIABLE'], 'JE_ARROW_MALLOC_CONF' in os.environ)") == (
        "some value False"
    )
    streams = kernel.outputs("import sys; print('out'); print('err', file=sys.stderr)")
    assert {(stream["name"], stream["text"]) for stream in streams} == {("stdout", "out\n"), ("stderr", "err\n")}


def test_figures_are_shown_inline(start: Start) -> None:
    (figure,) = start().outputs("import matplotlib.pyplot as plt; _ = plt.plot([1, 2])")
    assert "image/png" in figure["data"]


def test_widgets_reach_the_front_end(start: Start) -> None:
    outputs = start().outputs("import ipywidgets; from IPython.display import display; display(ipywidgets.IntSlider())")
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)


def test_random_numbers_differ_between_kernels(start: Start) -> None:
    code = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item())"
    first, second = start().text(code).split(), start().text(code).split()
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_a_killed_kernel_is_dead_at_once(start: Start, tools: SimpleNamespace) -> None:
    process = start().process
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    began = time.monotonic()
    assert process.wait(5) == -signal.SIGKILL
    assert time.monotonic() - began < 1
    assert not tools.is_running(process.pid)


def test_the_exit_status_of_a_kernel_is_reported(start: Start) -> None:
    kernel = start()
    kernel.client.execute("import os; os._exit(7)")
    assert kernel.process.wait(10) == 7


def test_wait_has_a_limit(start: Start) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        start().process.wait(0.1)


def test_what_a_kernel_started_ends_with_it(start: Start, tools: SimpleNamespace) -> None:
    kernel = start()
    child = int(kernel.text("import subprocess; print(subprocess.Popen(['sleep', '1000']).pid)"))
    assert tools.is_running(child)
    os.kill(kernel.process.pid, signal.SIGKILL)
    tools.wait_for(lambda: not tools.is_running(child))


def test_a_kernel_ends_when_its_owner_lets_go(start: Start, tools: SimpleNamespace) -> None:
    process = start().process
    # What the operating system does to the sockets of an owner that is killed, half of it: the answer is still read.
    process._socket.shutdown(socket.SHUT_WR)
    assert process.wait(5) == -signal.SIGKILL
    assert not tools.is_running(process.pid)


def test_a_request_that_is_none_does_not_disturb_the_zygote(zygote: Zygote, start: Start) -> None:
    for line in (b"", b"not JSON\n", b"{"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(zygote.environment[ADDRESS])
            connection.sendall(line)
    assert start().text("print(1)") == "1"


async def _launch(command: list[str], address: str) -> Any:
    provisioner = ForkProvisioner(kernel_id="test", kernel_spec=None)
    await provisioner.launch_kernel(command, env={**os.environ, ADDRESS: address})
    return provisioner.process


def test_without_a_zygote_the_kernel_starts_in_the_ordinary_way(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import asyncio

    command = [sys.executable, "-m", "ipykernel_launcher", "-f", str(tmp_path / "connection.json")]
    process = asyncio.run(_launch(command, str(tmp_path / "none")))
    process.kill()
    process.wait()
    assert isinstance(process, subprocess.Popen)
    assert [record.getMessage() for record in caplog.records] == [
        "this kernel starts cold: [Errno 2] No such file or directory"
    ]


def test_a_kernel_of_another_environment_is_not_forked(zygote: Zygote) -> None:
    import asyncio

    process = asyncio.run(_launch(["/bin/sleep", "100"], zygote.environment[ADDRESS]))
    process.kill()
    process.wait()
    assert isinstance(process, subprocess.Popen)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (("sys.platform", "darwin"), "kernels start cold: pre-warmed ones need Linux"),
        (("sys.executable", "/bin/false"), "kernels start cold: the zygote did not start"),
        (("sys.executable", "/no/such/python"), "kernels start cold: [Errno 2] No such file"),
    ],
)
def test_a_zygote_that_cannot_be_had_is_one_line_of_log(
    broken: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    monkeypatch.setattr(*broken)
    with Zygote() as zygote:
        assert not zygote.ready()
        assert zygote.environment == {}
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].getMessage().startswith(message)


def test_a_running_zygote_is_used_and_left_running(zygote: Zygote) -> None:
    with Zygote() as second:
        assert second.pid is None
        assert second.ready()
        assert second.environment == zygote.environment
    assert zygote.pid is not None
    assert psutil.pid_exists(zygote.pid)


def test_a_zygote_that_has_gone_is_one_line_of_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ADDRESS, "/no/such/socket")
    with Zygote() as zygote:
        assert not zygote.ready()
        assert zygote.environment == {}
    assert [record.getMessage() for record in caplog.records] == [
        "kernels start cold: there is no zygote at /no/such/socket"
    ]


@pytest.mark.slow
def test_kernels_die_with_their_zygote(monkeypatch: pytest.MonkeyPatch, tools: SimpleNamespace) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    with Zygote() as zygote:
        assert zygote.ready()
        assert zygote.pid is not None
        kernel = Kernel(**zygote.environment)
        os.kill(zygote.pid, signal.SIGKILL)
        assert kernel.process.wait(5) == -signal.SIGKILL
        tools.wait_for(lambda: not tools.is_running(kernel.process.pid))
        kernel.stop()


@pytest.mark.slow
def test_the_zygote_and_its_kernels_die_with_their_parent(tools: SimpleNamespace) -> None:
    code = """
    import os, sys, time
    from lossbook.book.prewarm import ADDRESS, ForkedProcess, Zygote
    with Zygote() as zygote:
        zygote.ready()
        arguments = ["-f", str(zygote.folder / "connection.json")]
        kernel = ForkedProcess(zygote.environment[ADDRESS], arguments, dict(os.environ), None)
        print(zygote.pid, kernel.pid, zygote.folder, flush=True)
        time.sleep(100)
    """
    environment = {name: value for name, value in os.environ.items() if name != ADDRESS}
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    zygote, kernel, folder = parent.stdout.readline().split()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for pid in (int(zygote), int(kernel)):
        tools.wait_for(lambda pid=pid: not tools.is_running(pid))
    assert not os.path.exists(folder)


def test_the_provisioner_is_jupyter_client_s_to_find() -> None:
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="jupyter_client.kernel_provisioners", name="lossbook-fork")
    assert entry.load() is ForkProvisioner
    assert issubclass(ForkProvisioner, LocalProvisioner)
