"""Resource specifications of a cluster."""

from tandem.serve.modelarts.settings.resource_specs import (
    GPU_IDS,
    NodeResources,
    ResourceSpec,
    merged,
    node_resources,
    specs_of,
)

CPU_NODE = NodeResources(num_cpus=6, num_gpus=0, gpu_type="")
GPU_NODE = NodeResources(num_cpus=32, num_gpus=4, gpu_type="A100")


def test_cpu_sizes_are_powers_of_two_that_fit_a_node():
    specs = specs_of([CPU_NODE, NodeResources(2, 0, "")], {"CPU": 1.5})
    assert [(s.spec_id, s.spec_code, s.max_num, s.has_room) for s in specs] == [
        (1, "tandem.cpu.1", 8, True),
        (2, "tandem.cpu.2", 4, False),
        (4, "tandem.cpu.4", 1, False),
    ]


def test_gpu_sizes_take_their_share_of_the_nodes_cpus():
    specs = [s for s in specs_of([GPU_NODE, GPU_NODE, CPU_NODE], {"CPU": 70, "GPU": 3}) if s.num_gpus]
    assert [(s.spec_code, s.num_gpus, s.num_cpus, s.max_num, s.has_room) for s in specs] == [
        ("tandem.a100.1", 1, 8, 8, True),
        ("tandem.a100.2", 2, 16, 4, True),
        ("tandem.a100.4", 4, 32, 2, False),
    ]


def test_ids_stay_the_same_when_nodes_are_added():
    alone = {s.spec_code: s.spec_id for s in specs_of([GPU_NODE], {})}
    among_others = {s.spec_code: s.spec_id for s in specs_of([NodeResources(8, 8, "A10"), GPU_NODE], {})}
    assert all(among_others[code] == id for code, id in alone.items())
    assert len(set(among_others.values())) == len(among_others)
    assert all(id >= GPU_IDS for code, id in among_others.items() if "cpu" not in code)


def test_a_configured_specification_replaces_a_live_one():
    own = ResourceSpec(1, "small", 0.5, 0, "", 4)
    assert merged([own], specs_of([NodeResources(2, 0, "")], {}))[0] == own


def test_a_node_is_read_from_rays_resources():
    assert node_resources({"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0}) == NodeResources(8, 2, "H100")
    assert node_resources({"CPU": 4.0, "memory": 1e9}) == NodeResources(4, 0, "")
    assert node_resources({"CPU": 4.0, "GPU": 1.0}).gpu_type == "GPU"
