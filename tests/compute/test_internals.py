"""What is used of other packages beyond their public interfaces, seen to be there and as it was.

Each place says why no public interface serves. These tests fail first when an upgrade changes one;
that of transformers' GGUF reader stands with the other tests of it.
"""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {
    "compute/cluster.py": {"ray._private.ray_logging", "ray._private.worker", "ray._raylet"},
    "compute/machine/local_ray.py": {"ray._private"},
}


def private_imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if any(part[0] == "_" and part[:2] != "__" for part in name.split(".")):
                yield name if isinstance(node, ast.Import) else node.module


def test_no_other_private_module_is_imported():
    found = {
        str(path.relative_to(ROOT)): names
        for room in ("compute", "flows", "storage", "tasks")
        for path in (ROOT / room).rglob("*.py")
        if (names := set(private_imports(path)))
    }
    assert found == KNOWN


def test_ray_hands_what_workers_print_to_handlers_by_name():
    from ray._private import worker
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    told = []
    dispatcher.add_handler("test", told.append)
    dispatcher.emit("line")
    dispatcher.remove_handler("test")
    dispatcher.emit("another")
    assert told == ["line"]
    # The one that prints, whose place ours takes.
    assert '"ray_print_logs"' in inspect.getsource(worker.connect)


def test_ray_tells_one_cluster_from_another(local_ray):
    import ray
    from ray._private.worker import global_worker
    from ray._raylet import GcsClient

    there = GcsClient(address=ray.get_runtime_context().gcs_address).cluster_id
    assert there.hex() == global_worker.gcs_client.cluster_id.hex()


def test_ray_looks_for_its_node_by_a_function_that_can_be_replaced():
    from ray._private import node, services

    assert list(inspect.signature(services.get_node).parameters) == ["gcs_address", "node_id"]
    assert "ray._private.services.get_node(" in inspect.getsource(node.Node)


def test_ray_reads_whether_it_may_be_several_machines_when_it_looks_for_its_address():
    from ray._private import ray_constants, services

    assert isinstance(ray_constants.ENABLE_RAY_CLUSTER, bool)
    assert "ray_constants.ENABLE_RAY_CLUSTER" in inspect.getsource(services)


def test_ray_takes_the_address_and_the_folder_of_a_cluster_that_it_starts():
    import ray

    source = inspect.getsource(ray.init)
    for name in ("_node_ip_address", "_temp_dir"):
        assert f'kwargs.pop("{name}"' in source


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_torch_has_the_product_of_onednn():
    x, weight, bias = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4)
    found = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    assert torch.allclose(found, x @ weight.T + bias, atol=1e-5)


def test_ray_reads_its_variables_again_when_told_to():
    code = """
import os, ray
from ray._raylet import AuthenticationMode, Config, get_authentication_mode
before = get_authentication_mode()
os.environ["RAY_AUTH_MODE"] = "token"
assert get_authentication_mode() == before != AuthenticationMode.TOKEN
Config.initialize("")
assert get_authentication_mode() == AuthenticationMode.TOKEN
"""
    environment = {n: v for n, v in os.environ.items() if n != "RAY_AUTH_MODE"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
